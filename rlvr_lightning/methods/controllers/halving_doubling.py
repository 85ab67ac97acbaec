"""A number doubled or halved until its sign changes (the controller of REPO, arXiv 2603.11682).

H < target: 2 zeta where zeta > 0, zeta / 2 where zeta < 0, and once |zeta| would fall below `smallest`: +smallest
H > target: the same towards the other side;   H = target: as it is
"""

from __future__ import annotations

from typing import ClassVar

from rlvr_lightning.methods.controllers.bounded import Bounded


class HalvingDoubling(Bounded):
    """Goes to either side of 0 by powers of two: fast, and as strongly as it takes.

    Args:
        drives: path of the number; raising it must raise the entropy.
        target: the entropy wanted [nats]; at least 0, or None for that of the run's first step (the paper's choice, by
            what others say of it).
        smallest: of the number's amount, below which it changes its sign; in (0, most].
        initial: the number at the first step, within the bounds; None for the component's configured one.
        least: lower bound of the number (the paper's: -0.05).
        most: upper bound (the paper's: 0.05).
        part: whose tokens' entropy is measured; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    held: ClassVar[tuple[str, ...]] = ("value", "first")

    def __init__(
        self,
        drives: str = "weighting.repo_r.zeta",
        target: float | None = None,
        smallest: float = 1e-4,
        initial: float | None = None,
        least: float = -0.05,
        most: float = 0.05,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part, initial)
        if target is not None and not target >= 0:
            self.refuse("target", "at least 0 or null", target)
        if not 0 < smallest <= most:
            self.refuse("smallest", f"in (0, most] = (0, {most:g}]", smallest)
        self.target, self.smallest = target, smallest
        self.value = 0.0
        self.first: float | None = None

    def start(self, configured: float) -> float:
        """The initial value, and no entropy yet."""
        self.value, self.first = super().start(configured), None
        return self.value

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """Twice, half, or the smallest of the other sign."""
        if self.first is None:
            self.first = entropy
        target = self.first if self.target is None else self.target
        if entropy != target:
            self.value = self.clamp(self._towards(1 if entropy < target else -1))
        return self.value

    def _towards(self, sign: int) -> float:
        if self.value * sign > 0:
            return 2 * self.value
        halved = self.value / 2
        return halved if abs(halved) >= self.smallest else sign * self.smallest
