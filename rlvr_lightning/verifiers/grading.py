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
    """Each rollout with its verdict, or with the error that kept it from one."""
    return [_grade(rollout, verifier) for rollout in rollouts]


def _grade(rollout: Rollout, verifier: Verifier) -> Rollout:
    try:
        verdict = verifier(rollout.text, rollout.prompt.problem)
        if not math.isfinite(verdict.reward):
            raise ValueError(f"reward {verdict.reward} is not finite")
    except Exception as error:  # noqa: BLE001 - whatever a verifier raises is counted and reported, never a reward
        message = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        log.warning("no verdict for problem %s: %s", rollout.prompt.problem.id, message)
        return replace(rollout, verdict=None, error=message)
    return replace(rollout, verdict=verdict, error=None)
