"""Verdicts for rollouts, and what each kind of verdict is worth. An error is not a reward: it has no verdict."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Rollout, Verdict, VerdictKind
from rlvr_lightning.verifiers.judging import Judgement
from rlvr_lightning.verifiers.pool import VerifierPool, Workers, check_workers

log = logging.getLogger(__name__)

# A number, `judged` for the verifier's own reward, or None for no verdict.
Worth = float | Literal["judged"] | None
DEFAULT_WORTH: dict[VerdictKind, Worth] = {"correct": "judged", "wrong": "judged", "unparsable": 0.0, "timeout": None}
# Kinds of which the verifier says a reward itself.
JUDGED = ("correct", "wrong", "unparsable")


@dataclass(frozen=True)
class Grading:
    """What becomes of verdicts.

    Args:
        values: what each kind is worth as a reward: a number, `judged` (what the verifier says), or None (no verdict: the
            response carries no weight in the loss and counts as not right). An `error` has no verdict in any case.
        max_error_share: of a phase's responses that may end by an `error` before the run stops, in [0, 1].
        workers: see `VerifierPool`.
        timeout_s: see `VerifierPool`.

    Raises:
        ConfigError: a value or the share is out of range, or a kind is unknown.
    """

    values: Mapping[VerdictKind, Worth] = field(default_factory=lambda: dict(DEFAULT_WORTH))
    max_error_share: float = 0.05
    workers: Workers = "auto"
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {**DEFAULT_WORTH, **self.values})
        for kind, worth in self.values.items():
            if kind not in DEFAULT_WORTH:
                why = ": an error is not a reward" if kind == "error" else ""
                raise ConfigError(f"grading.values holds {', '.join(DEFAULT_WORTH)} alone; got {kind}{why}")
            if worth is None or (worth == "judged" and kind in JUDGED):
                continue
            if isinstance(worth, bool) or not isinstance(worth, int | float) or not math.isfinite(worth):
                judged = "judged, " if kind in JUDGED else ""
                raise ConfigError(f"grading.values.{kind} must be a number, {judged}or null; got {worth!r}")
        if not 0 <= self.max_error_share <= 1:
            raise ConfigError(f"grading.max_error_share must be in [0, 1]; got {self.max_error_share}")
        check_workers(self.workers, self.timeout_s)

    def verdict(self, judgement: Judgement) -> Verdict | None:
        """What a judgement is worth: its verdict with the reward that its kind has here, or None for no weight."""
        worth = None if judgement.kind == "error" else self.values[judgement.kind]
        if worth is None:
            return None
        verdict = judgement.verdict or Verdict(0.0, False, kind=judgement.kind)
        return verdict if worth == "judged" else replace(verdict, reward=float(worth))


def grade(
    rollouts: Sequence[Rollout], pool: VerifierPool, grading: Grading, judged: Sequence[Future[Judgement]] = ()
) -> list[Rollout]:
    """Each rollout with its verdict, or with what kept it from one.

    Args:
        rollouts: responses that are not judged.
        pool: judges them.
        grading: what verdicts are worth.
        judged: what `pool` has been asked for already, for each of them; nothing where it has not.

    Returns:
        As many rollouts, in order, each with the kind of its verdict. Each kind of error is logged once.
    """
    asked = judged or [pool.submit(rollout.text, rollout.prompt.problem) for rollout in rollouts]
    graded = [
        replace(rollout, verdict=grading.verdict(one), error=one.error, kind=one.kind)
        for rollout, one in zip(rollouts, pool.collect(asked), strict=True)
    ]
    failures: dict[str, list[Rollout]] = {}
    for rollout in graded:
        if rollout.error is not None:
            failures.setdefault(rollout.error.partition(":")[0], []).append(rollout)
    for of_kind in failures.values():
        log.warning("no verdict for %d of %d responses; the first: %s", len(of_kind), len(graded), told(of_kind[0]))
    return graded


def told(rollout: Rollout) -> str:
    """What went wrong with a response, with its problem."""
    return f"problem {rollout.prompt.problem.id}: {rollout.error}"
