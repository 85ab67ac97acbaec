"""Down, up, and down again (flexible entropy control, arXiv 2602.09782).

value: most at k/T = 0, least at `trough`, most at `peak`, least at 1
"""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_lightning.methods.controllers.schedule import Schedule


class DecreaseIncreaseDecrease(Schedule):
    """The paper's decrease-increase-decrease schedule, as straight lines between two values.

    The paper does not publish the values or the turning points: the defaults are this project's.

    Args:
        drives: path of the number; raising it must raise the entropy.
        trough: k / T of the smallest value in between; in (0, peak).
        peak: k / T of the largest value after it; in (trough, 1).
        least: the number at the trough and at the end.
        most: the number at the beginning and at the peak.
        part: whose tokens' entropy is logged; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        drives: str = "constraint.beta_high",
        trough: float = 0.3,
        peak: float = 0.6,
        least: float = 0.35,
        most: float = 0.6,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part)
        if not 0 < trough < peak:
            self.refuse("trough", f"in (0, peak) = (0, {peak:g})", trough)
        if not peak < 1:
            self.refuse("peak", "below 1", peak)
        self.trough, self.peak = trough, peak

    @property
    def corners(self) -> Sequence[tuple[float, float]]:
        """Down, up and down."""
        return ((0.0, self.most), (self.trough, self.least), (self.peak, self.most), (1.0, self.least))
