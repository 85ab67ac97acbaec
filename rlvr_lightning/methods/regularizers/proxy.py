"""What Lp-Reg reads of its proxy distribution (arXiv 2510.03222), from one pass over the logits.

The proxy is that of the policy at the start of the update (`old`, the published one), of the policy as it is now (`current`), or of the
frozen reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.objective.tile import ClosedStatistic, Tile
from rlvr_lightning.types import Pass

Source = Literal["old", "current", "reference"]
SCORED: dict[Source, tuple[Pass, ...]] = {
    "old": ("rollout", "on_policy"),
    "current": ("update", "on_policy"),
    "reference": ("reference",),
}


def named(name: str, of: Source, *settings: object) -> str:
    """A statistic's name: one for each policy and setting."""
    return f"{'' if of == 'old' else f'{of}_'}{name}({','.join(map(str, settings))})"


@dataclass(frozen=True)
class ProxyLogprob(ClosedStatistic):
    """log pi_proxy of the sampled token [nats]; -inf where it was dropped as noise.

    Args:
        filter: what is kept.
        of: the policy whose proxy it is.
        rarest: see `ClosedStatistic`.
    """

    filter: Filter
    of: Source = "old"
    rarest: float | None = None
    differentiable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """One for each filter and policy."""
        return named("proxy_logprobs", self.of, self.filter)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Of that policy."""
        return SCORED[self.of]

    def value(self, tile: Tile) -> Float[Tensor, " N"]:
        """Filter, read off the sampled token, renormalise."""
        mass, tau = self.filter.log_mass(tile)
        kept = self.filter.kept(tile.sampled.unsqueeze(-1), tau).squeeze(-1)
        return torch.where(kept, tile.sampled - mass, -torch.inf)


@dataclass(frozen=True)
class ProxySupport(ClosedStatistic):
    """The most probable kept tokens of another policy's proxy, so that an update can be pulled towards it.

    Args:
        filter: what is kept.
        size: tokens remembered at most; a larger support is cut to these.
        of: the policy whose proxy it is, `old` or `reference`.
    """

    filter: Filter
    size: int
    of: Source = "old"
    differentiable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """One for each filter, size and policy."""
        return named("proxy_support", self.of, self.filter, self.size)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Of that policy, where it is not the one that is trained."""
        return ("reference",) if self.of == "reference" else ("rollout",)

    def value(self, tile: Tile) -> Float[Tensor, "N 2 K"]:
        """Ids of the K = min(size, V) largest, as floats (exact below 2^24), and their log pi_proxy [nats] or -inf."""
        kept, mass = self.filter.keep(tile.logprobs)
        values, ids = kept.topk(min(self.size, kept.shape[-1]), dim=-1)
        return torch.stack([ids.to(values.dtype), values - mass], dim=1)
