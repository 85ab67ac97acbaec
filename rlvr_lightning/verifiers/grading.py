"""Verdicts for rollouts. An error is not a reward: a response the verifier failed on has no verdict."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from rlvr_lightning.protocols import Verifier
from rlvr_lightning.types import Rollout

log = logging.getLogger(__name__)


def grade(rollouts: Sequence[Rollout], verifier: Verifier) -> list[Rollout]:
    """Each rollout with its verdict, or with the error that kept it from one.

    Args:
        rollouts: responses without a verdict.
        verifier: judges them.

    Returns:
        As many rollouts, in order; each has either `verdict` or `error`. Each kind of error is logged once.
    """
    graded: list[Rollout] = []
    failures: dict[str, list[str]] = {}
    for rollout in rollouts:
        try:
            verdict = verifier(rollout.text, rollout.prompt.problem)
            if not math.isfinite(verdict.reward):
                raise ValueError(f"reward {verdict.reward} is not finite")
        except Exception as error:  # noqa: BLE001 - whatever a verifier raises is counted and reported, never a reward
            message = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            failures.setdefault(type(error).__name__, []).append(f"problem {rollout.prompt.problem.id}: {message}")
            graded.append(replace(rollout, verdict=None, error=message))
        else:
            graded.append(replace(rollout, verdict=verdict, error=None))
    for messages in failures.values():
        log.warning("no verdict for %d of %d responses; the first: %s", len(messages), len(rollouts), messages[0])
    return graded
