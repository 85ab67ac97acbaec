"""When too many responses of a phase end by a verifier's error, all ranks stop together and say why."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_lightning.errors import VerifierError
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.types import Rollout
from rlvr_lightning.verifiers.grading import told

EXAMPLES = 3


def check_errors(rollouts: Sequence[Rollout], max_share: float) -> None:
    """Stop where a verifier fails too often. Every rank must call it, and all of them raise or none.

    Args:
        rollouts: this rank's of the phase, graded.
        max_share: of all ranks' responses that may end by an `error`, in [0, 1].

    Raises:
        VerifierError: more of them did; the message has three examples.
    """
    failed = [rollout for rollout in rollouts if rollout.kind == "error"]
    # One entry a rank, so that no response travels.
    gathered = from_all_ranks([(len(rollouts), len(failed), [told(rollout) for rollout in failed[:EXAMPLES]])])
    responses, errors = sum(entry[0] for entry in gathered), sum(entry[1] for entry in gathered)
    if errors > max_share * responses:
        examples = "; ".join([text for entry in gathered for text in entry[2]][:EXAMPLES])
        raise VerifierError(
            f"the verifier failed on {errors} of {responses} responses ({errors / responses:.0%}), more than "
            f"grading.max_error_share={max_share:g} allows; for instance {examples}"
        )
