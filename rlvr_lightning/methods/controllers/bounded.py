"""What all controllers of this package share: what they drive, between which bounds, from which value on."""

from __future__ import annotations

import math
from typing import ClassVar

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.controllers.protocol import State


class Bounded:
    """Settings every controller has, and its state by attribute names.

    Args:
        drives: path of the number, such as `constraint.clip_high`.
        least: its lower bound; below `most`.
        most: its upper bound.
        part: whose tokens' entropy is measured; None for all.
        initial: the number at the first step, within the bounds; None for the component's configured one.

    Raises:
        ConfigError: a setting is out of range.
    """

    # Attributes that change from step to step.
    held: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, drives: str, least: float, most: float, part: str | None = None, initial: float | None = None
    ) -> None:
        if not isinstance(drives, str) or "." not in drives:
            self.refuse("drives", "a path such as constraint.clip_high", drives)
        if not -math.inf < least < most < math.inf:
            self.refuse("least", f"below most={most}, and both finite", least)
        if initial is not None and not least <= initial <= most:
            self.refuse("initial", f"in [least, most] = [{least:g}, {most:g}] or null", initial)
        self.drives, self.least, self.most, self.part, self.initial = drives, least, most, part, initial

    def refuse(self, name: str, rule: str, value: object) -> None:
        """Say what a setting must be.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{type(self).__name__}.{name} must be {rule}; got {value}")

    def clamp(self, value: float) -> float:
        """The nearest number in [least, most]."""
        return min(max(value, self.least), self.most)

    def start(self, configured: float) -> float:
        """The initial value, or the component's own."""
        return configured if self.initial is None else self.initial

    def state_dict(self) -> State:
        """The attributes named in `held`."""
        return {name: getattr(self, name) for name in self.held}

    def load_state_dict(self, state: State) -> None:
        """Go on from there."""
        for name in self.held:
            setattr(self, name, state[name])
