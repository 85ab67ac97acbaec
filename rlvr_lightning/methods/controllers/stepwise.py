"""The adaptive entropy coefficient of Skywork-OR1, arXiv 2505.22312.

H < target: coef + step;   otherwise: coef - step
"""

from __future__ import annotations

from typing import ClassVar

from rlvr_lightning.methods.controllers.bounded import Bounded


class Stepwise(Bounded):
    """Raises a coefficient by a step while the entropy is below a target, and lowers it otherwise.

    Args:
        drives: path of the number; raising it must raise the entropy.
        target: the entropy wanted [nats]; at least 0 (the report: 0.2).
        step: change of the number an optimizer step; above 0 (the report: 0.005).
        initial: the number at the first step, within the bounds; None for the component's configured one.
        least: lower bound of the number.
        most: upper bound (this project's).
        part: whose tokens' entropy is measured; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    held: ClassVar[tuple[str, ...]] = ("value",)

    def __init__(
        self,
        drives: str = "regularizer.entropy_bonus.coef",
        target: float = 0.2,
        step: float = 0.005,
        initial: float | None = 0.0,
        least: float = 0.0,
        most: float = 0.1,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part, initial)
        if not target >= 0:
            self.refuse("target", "at least 0", target)
        if not step > 0:
            self.refuse("step", "above 0", step)
        self.target, self.step = target, step
        self.value = 0.0

    def start(self, configured: float) -> float:
        """The initial coefficient."""
        self.value = super().start(configured)
        return self.value

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """One step up or down."""
        self.value = self.clamp(self.value + (self.step if entropy < self.target else -self.step))
        return self.value
