"""Masked importance sampling between trainer and engine (MIS; IcePop): w = 0 where pi_old / pi_infer leaves a range."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.corrections.levels import Level, check_level, mismatch_ratio
from rlvr_lightning.types import TokenStats


class MIS:
    """Weigh each token by pi_old / pi_infer, and leave out those on which trainer and engine disagree.

    Tokens left out stay in the denominators.

    Args:
        least: lower end of the range; in (0, 1].
        most: upper end; at least 1.
        level: of the ratio: each token's own, its response's product (`sequence`), or that one's geometric mean; with the
            latter two whole responses are left out.

    Raises:
        ConfigError: the range does not hold 1, or there is no such level.
    """

    def __init__(self, least: float = 0.5, most: float = 2.0, level: Level = "token") -> None:
        if not 0 < least <= 1 <= most:
            raise ConfigError(f"MIS.least and MIS.most must enclose 1, above 0; got {least} and {most}")
        check_level(level, "MIS")
        self.least, self.most, self.level = least, most, level

    @property
    def per_response(self) -> bool:
        """Whether all tokens of a response weigh the same."""
        return self.level != "token"

    def __call__(self, stats: TokenStats) -> Float[Tensor, "B T"]:
        """pi_old / pi_infer inside the range, 0 outside."""
        weight = mismatch_ratio(stats, self.level)
        return torch.where((weight >= self.least) & (weight <= self.most), weight, 0.0)
