"""The entropy swings between two edges that close in on each other (flexible entropy control, arXiv 2602.09782).

low = low_share H_init,   high = low + (H_init - low)(1 - k/T);   H < low: raise,   H > high: lower
"""

from __future__ import annotations

from typing import ClassVar

from rlvr_lightning.methods.controllers.bounded import Bounded
from rlvr_lightning.methods.controllers.schedule import progress


class OscillatingDecay(Bounded):
    """The paper's oscillating decay: a band with hysteresis whose upper edge sinks to the lower one.

    H_init is the entropy of the run's first step. The two values the number switches between are not published: the
    defaults are this project's, and so is that a run begins by lowering the entropy.

    Args:
        drives: path of the number; raising it must raise the entropy.
        low_share: the lower edge as a share of H_init; in [0, 1] (the paper: 0.2).
        least: the number while the entropy is lowered.
        most: the number while it is raised.
        part: whose tokens' entropy is measured; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    held: ClassVar[tuple[str, ...]] = ("first", "raising")

    def __init__(
        self,
        drives: str = "constraint.beta_high",
        low_share: float = 0.2,
        least: float = 0.35,
        most: float = 0.6,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part)
        if not 0 <= low_share <= 1:
            self.refuse("low_share", "in [0, 1]", low_share)
        self.low_share = low_share
        self.first: float | None = None
        self.raising = False

    def start(self, configured: float) -> float:
        """Lowering, whatever is configured."""
        self.first, self.raising = None, False
        return self.least

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """One of the two values."""
        if self.first is None:
            self.first = entropy
        low = self.low_share * self.first
        high = low + (self.first - low) * (1 - progress(step, num_steps))
        if entropy < low:
            self.raising = True
        elif entropy > high:
            self.raising = False
        return self.most if self.raising else self.least
