"""The reference policy: frozen as training found it, or a lagged average of the policy's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlvr_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rlvr_lightning.models.policy import Policy


class Reference:
    """What the KL and proxies of the reference are made of.

    Args:
        rate: how far it goes towards the policy after each optimizer step, in [0, 1): 0 keeps it frozen, r makes of it the average of
            the last policies with weights r (1 - r)^k, about 1 / r steps behind.
        required: whether a component needs one.
        adapters: whether it is the policy itself, with its adapters switched off.

    Raises:
        ConfigError: the rate is out of range, or there is nothing that could move.
    """

    def __init__(self, rate: float, *, required: bool, adapters: bool) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"model.reference_rate must be in [0, 1); got {rate}")
        moves = f"model.reference_rate={rate} moves the reference, which"
        if rate and not required:
            raise ConfigError(f"{moves} no component needs: set it to 0, or add one that does")
        if rate and adapters:
            raise ConfigError(f"{moves} with adapters is the model they are added to: set it to 0")
        self.rate = rate
        # Once it is loaded, where it is needed and is a model of its own.
        self.model: Policy | None = None

    @torch.no_grad()
    def follow(self, policy: Policy) -> None:
        """Go towards the policy; of sharded weights each rank moves its own part."""
        if self.rate and self.model is not None:
            for behind, ahead in zip(self.model.parameters(), policy.parameters(), strict=True):
                _own(behind).lerp_(_own(ahead), self.rate)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it: all weights of one that moves, nothing of a frozen one, which is in its folder."""
        if not self.rate or self.model is None:
            return {}
        return {f"reference.{name}": weight.detach() for name, weight in self.model.named_parameters()}


def _own(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
