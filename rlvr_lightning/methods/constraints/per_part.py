"""Settings that are one number for all tokens, or one for each part by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import ConstraintPolicy

PerPart = float | Mapping[str, float]


def check_range(owner: str, name: str, setting: PerPart, least: float, most: float = float("inf")) -> None:
    """Every number of a setting lies in [least, most].

    Raises:
        ConfigError: one does not.
    """
    for value in setting.values() if isinstance(setting, Mapping) else (setting,):
        if not least <= value <= most:
            raise ConfigError(f"{owner}.{name} must be in [{least:g}, {most:g}]; got {value}")


def check_number(owner: str, name: str, value: float, least: float, most: float = float("inf")) -> None:
    """A setting that is the same for all tokens lies in [least, most].

    Raises:
        ConfigError: it does not, or is given for each part.
    """
    if isinstance(value, Mapping):
        raise ConfigError(f"{owner}.{name} must be one number for all parts; got {dict(value)}")
    check_range(owner, name, value, least, most)


class PerPartConstraint(ConstraintPolicy):
    """A constraint whose attributes named in `per_part` may be set for each part."""

    per_part: ClassVar[tuple[str, ...]]

    def bind(self, parts: tuple[str, ...]) -> None:
        """Check the per-part settings against the parts.

        Raises:
            ConfigError: they name others.
        """
        for name in self.per_part:
            setting = getattr(self, name)
            if isinstance(setting, Mapping) and set(setting) != set(parts):
                raise ConfigError(
                    f"constraint.{name} is set for the parts {', '.join(setting)}, but the partitioner makes "
                    f"{', '.join(parts)}: give one number for all, or one for each of these"
                )
        self.parts = parts

    def setting(self, name: str, part_ids: Int[Tensor, "B T"], like: Tensor) -> Float[Tensor, ...]:
        """The setting for each token (or one for all)."""
        value = getattr(self, name)
        if isinstance(value, Mapping):
            return like.new_tensor([value[part] for part in self.parts])[part_ids]
        return like.new_tensor(value)
