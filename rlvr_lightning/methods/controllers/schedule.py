"""Values that follow the run's progress k / T along straight lines, whatever the entropy does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from rlvr_lightning.methods.controllers.bounded import Bounded


def progress(step: int, num_steps: int) -> float:
    """k / T in [0, 1]; 0 where the run has no end."""
    return min(max(step / num_steps, 0.0), 1.0) if num_steps else 0.0


class Schedule(Bounded, ABC):
    """A value for each k / T; the entropy is measured for the logs alone."""

    @property
    @abstractmethod
    def corners(self) -> Sequence[tuple[float, float]]:
        """(k / T, value) where the lines meet, rising in k / T from 0 to 1."""

    def start(self, configured: float) -> float:
        """The schedule's beginning, whatever is configured."""
        return self.corners[0][1]

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """Linear between the corners."""
        now = progress(step, num_steps)
        (left, before), (right, after) = next(pair for pair in pairwise(self.corners) if now <= pair[1][0])
        return self.clamp(before + (after - before) * (now - left) / (right - left))
