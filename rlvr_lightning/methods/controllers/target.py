"""Proportional-integral control of the entropy (control theory's PI controller; its gains are this project's).

error = target - H,   value = clamp(initial + kp error + ki sum(error))
"""

from __future__ import annotations

from typing import ClassVar

from rlvr_lightning.methods.controllers.bounded import Bounded


class Target(Bounded):
    """Holds the entropy at a target.

    An error is not added to the sum where the value is at a bound and the error pushes it further out (anti-windup):
    the value leaves the bound as soon as the error turns.

    Args:
        drives: path of the number, such as `constraint.clip_high`.
        target: the entropy wanted [nats]; at least 0.
        kp: change of the number per nat of error; at least 0.
        ki: and per nat of error summed over the steps; at least 0.
        direction: 1 where raising the number raises the entropy, -1 where it lowers it.
        initial: the number at error 0, within the bounds; None for the component's configured one.
        least: lower bound of the number.
        most: upper bound.
        part: whose tokens' entropy is measured; None for all.

    Raises:
        ConfigError: a setting is out of range.
    """

    held: ClassVar[tuple[str, ...]] = ("base", "integral")

    def __init__(
        self,
        drives: str,
        target: float = 0.2,
        kp: float = 0.5,
        ki: float = 0.05,
        direction: int = 1,
        initial: float | None = None,
        least: float = 0.0,
        most: float = 1.0,
        part: str | None = None,
    ) -> None:
        super().__init__(drives, least, most, part, initial)
        for name, value in (("target", target), ("kp", kp), ("ki", ki)):
            if not value >= 0:
                self.refuse(name, "at least 0", value)
        if direction not in (1, -1):
            self.refuse("direction", "1 or -1", direction)
        self.target, self.kp, self.ki, self.direction = target, kp, ki, direction
        self.base = self.integral = 0.0

    def start(self, configured: float) -> float:
        """The value at error 0."""
        self.base, self.integral = super().start(configured), 0.0
        return self.base

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """Proportional and integral part, clamped."""
        error = self.direction * (self.target - entropy)
        value = self.base + self.kp * error + self.ki * (self.integral + error)
        pushed_out = (value >= self.most and error > 0) or (value <= self.least and error < 0)
        if not pushed_out:
            self.integral += error
        return self.clamp(value)
