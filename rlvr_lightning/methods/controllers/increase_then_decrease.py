"""Up, then down (flexible entropy control, arXiv 2602.09782).

value: least at k/T = 0, most at `peak`, least at 1
"""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_lightning.methods.controllers.schedule import Schedule


class IncreaseThenDecrease(Schedule):
    """The paper's increase-then-decrease schedule, as straight lines between two values.

    The paper does not publish the values or the turning point: the defaults are this project's.

    Args:
        drives: path of the number; raising it must raise the entropy.
        peak: k / T of the largest value; in (0, 1).
        least: the number at both ends.
        most: the number at the peak.
        part: whose tokens' entropy is logged; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        drives: str = "constraint.beta_high",
        peak: float = 0.5,
        least: float = 0.35,
        most: float = 0.6,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part)
        if not 0 < peak < 1:
            self.refuse("peak", "in (0, 1)", peak)
        self.peak = peak

    @property
    def corners(self) -> Sequence[tuple[float, float]]:
        """Up to the peak and down again."""
        return ((0.0, self.least), (self.peak, self.most), (1.0, self.least))
