"""A band with hysteresis (a thermostat; its numbers are this project's): the value moves until the other edge is passed.

H < low: value + step from now on;   H > high: value - step from now on
"""

from __future__ import annotations

from typing import ClassVar

from rlvr_lightning.methods.controllers.bounded import Bounded


class Band(Bounded):
    """Keeps the entropy between two edges.

    Below the lower edge the number begins to rise, above the upper one to fall, and in between it goes on as before;
    it stays where it is until the entropy leaves the band for the first time.

    Args:
        drives: path of the number; raising it must raise the entropy.
        low: lower edge [nats]; at least 0.
        high: upper edge [nats]; at least `low`.
        step: change of the number an optimizer step; above 0.
        initial: the number at the first step, within the bounds; None for the component's configured one.
        least: lower bound of the number.
        most: upper bound.
        part: whose tokens' entropy is measured; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    held: ClassVar[tuple[str, ...]] = ("value", "mode")

    def __init__(
        self,
        drives: str,
        low: float = 0.1,
        high: float = 0.3,
        step: float = 0.01,
        initial: float | None = None,
        least: float = 0.0,
        most: float = 1.0,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part, initial)
        if not 0 <= low <= high:
            self.refuse("low", f"in [0, high] = [0, {high:g}]", low)
        if not step > 0:
            self.refuse("step", "above 0", step)
        self.low, self.high, self.step = low, high, step
        self.value, self.mode = 0.0, 0

    def start(self, configured: float) -> float:
        """Neither rising nor falling."""
        self.value, self.mode = super().start(configured), 0
        return self.value

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """One step up or down."""
        if entropy < self.low:
            self.mode = 1
        elif entropy > self.high:
            self.mode = -1
        self.value = self.clamp(self.value + self.mode * self.step)
        return self.value
