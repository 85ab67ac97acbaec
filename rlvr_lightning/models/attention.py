"""Which attention a policy computes with, and how packed responses are kept apart without a mask of L x L.

Padding lies on the right, so that causal attention needs no mask for it. Packed, each response attends to itself alone:
flash attention and flex attention read that from the positions, which begin anew with each response; for torch's own
`scaled_dot_product_attention` a function is registered with transformers that computes response by response. Where a mask
would be made, it finds a `Plan`; what responses have in common comes to it once, and is given to each of them. Flash
attention, flex attention and eager are transformers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.packing import Packing, current_packing, gather

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKENDS = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
# As transformers knows it; it looks for `sdpa` in the name.
BY_RESPONSE = "sdpa_by_response"
# Responses this short are computed together with others of nearly their length: starting a kernel costs more than running
# it. What they are filled up with is a quarter of them at most.
SHORT, LEAST_SHARE = 512, 0.8


@dataclass(frozen=True)
class Group:
    """Neighbours in a packed row that are computed at once, as S rows of N columns.

    Args:
        start: the first one's first column.
        lengths: of each; the first is the longest.
        packing: of the row.
        device: of the tensors.
    """

    start: int
    lengths: tuple[int, ...]
    packing: Packing
    device: torch.device

    @property
    def _alike(self) -> bool:
        return min(self.lengths) == self.lengths[0]

    @cached_property
    def _columns(self) -> Int[Tensor, " columns"]:
        lengths = torch.tensor(self.lengths)
        begins = self.start + (lengths.cumsum(0) - lengths).unsqueeze(1)
        columns = begins + torch.arange(self.lengths[0])
        columns = columns.clamp(max=self.start + sum(self.lengths) - 1).flatten().to(self.device)
        return columns if self.packing.source is None else self.packing.source[columns]

    @cached_property
    def _real(self) -> Int[Tensor, " M"]:
        inside = torch.arange(self.lengths[0]) < torch.tensor(self.lengths).unsqueeze(1)
        return inside.flatten().nonzero().flatten().to(self.device)

    def rows(self, values: Float[Tensor, "1 H K D"]) -> Float[Tensor, "S H N D"]:
        """Each response a row, filled up with what comes after it."""
        columns = values[0].transpose(0, 1)
        if self._alike and self.packing.source is None:
            own = columns[self.start : self.start + sum(self.lengths)]
        else:
            own = gather(columns, self._columns)
        return own.view(len(self.lengths), -1, *own.shape[1:]).transpose(1, 2)

    def columns(self, rows: Float[Tensor, "S H N D"]) -> Float[Tensor, "M H D"]:
        """One after another again, without what they were filled up with."""
        flat = rows.transpose(1, 2).flatten(0, 1)
        return flat if self._alike else flat.index_select(0, self._real)


@dataclass(frozen=True)
class Plan:
    """What takes the place of a mask.

    Args:
        packing: of the row.
        window: tokens that one sees, itself included; None for all before it.
        device: of the tensors.
    """

    packing: Packing
    window: int | None
    device: torch.device

    @cached_property
    def groups(self) -> list[Group]:
        """Responses computed at once. The layout brings the longest first, so that neighbours are nearly alike."""
        assert self.packing.lengths is not None
        groups: list[list[int]] = []
        for length in self.packing.lengths:
            longest = groups[-1][0] if groups else 0
            if length == longest or (longest <= SHORT and LEAST_SHARE * longest <= length < longest):
                groups[-1].append(length)
            else:
                groups.append([length])
        starts = accumulate(map(sum, groups), initial=0)
        found = zip(starts, groups, strict=False)
        return [Group(start, tuple(own), self.packing, self.device) for start, own in found]

    @cached_property
    def band(self) -> Tensor:
        """Which of 2 W - 1 keys the W queries of a block see: of the i-th, those from i to i + W - 1."""
        assert self.window is not None
        queries = torch.arange(self.window, device=self.device).unsqueeze(1)
        keys = torch.arange(2 * self.window - 1, device=self.device)
        return (keys >= queries) & (keys < queries + self.window)


def plan_or_mask(q_length: int, kv_length: int, **asked: Any) -> Plan | Tensor | None:
    """What transformers calls for a mask: None for plain causal attention, else a `Plan`.

    A mask itself only for what no policy's pass has: padding on the left, a cache, patterns of a model's own.
    """
    from transformers.masking_utils import sdpa_mask

    local, config = asked.get("local_size"), asked.get("config")
    packing = current_packing()
    lengths = packing.lengths
    longest = kv_length if lengths is None else max(lengths)
    if local is not None and local >= longest:
        local = None
    chunked = local is not None and local == getattr(config, "attention_chunk_size", None)
    own = asked.get("use_vmap") or asked.get("attention_mask") is not None or q_length != kv_length or chunked
    if own or (lengths is None and not asked.get("allow_is_causal_skip", True)):
        mask: Tensor | None = sdpa_mask(q_length=q_length, kv_length=kv_length, **asked)
        return mask
    return None if lengths is None and local is None else Plan(packing, local, torch.device(asked["device"]))


def attend(
    module: Any,
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B K L D"],
    value: Float[Tensor, "B K L E"],
    attention_mask: Plan | Tensor | None,
    **settings: Any,
) -> tuple[Float[Tensor, "B L H E"], None]:
    """Attention as transformers calls it, response by response where it finds a `Plan`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, Plan):
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output
    for name in ("softcap", "s_aux", "position_bias"):
        if settings.get(name) is not None:
            raise ConfigError(
                f"the model's attention has a {name}, which sdpa does not compute: set model.attention=eager"
            )
    plan, scale = attention_mask, settings.get("scaling")
    if plan.packing.lengths is None:
        return _causal(query, key, value, plan, scale).transpose(1, 2).contiguous(), None
    pieces = [
        group.columns(_causal(group.rows(query), group.rows(key), group.rows(value), plan, scale))
        for group in plan.groups
    ]
    states, computed = torch.cat(pieces), plan.packing.computed
    return (states if computed is None else states.index_select(0, computed)).unsqueeze(0), None


def _causal(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None) -> Tensor:
    """Causal attention of rows that begin at the first column, in blocks of the window where they are longer than it."""
    width, window = query.shape[2], plan.window
    if window is None or width <= window:
        return _attention(query, key, value, None, scale)
    blocks = [_attention(query[:, :, :window], key[:, :, :window], value[:, :, :window], None, scale)]
    for start in range(window, width, window):
        stop, first = min(start + window, width), start - window + 1
        band = plan.band[: stop - start, : stop - first]
        blocks.append(_attention(query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop], band, scale))
    return torch.cat(blocks, dim=2)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    # Off the CPU, only the kernels of half precision without a mask take keys that several heads share; another would fall
    # back on one that keeps L x L.
    takes_shared = query.device.type == "cpu" or (mask is None and query.element_size() == 2)
    if shared > 1 and not takes_shared:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=shared > 1 and takes_shared
    )


def resolved(backend: str, precision: str, accelerator: str) -> str:
    """What `auto` is here; any other is itself.

    Args:
        backend: as configured.
        precision: what is computed in, as Lightning calls it.
        accelerator: what is computed on, as Lightning calls it.

    Raises:
        ConfigError: there is no such backend, or it cannot train in this precision or on this accelerator.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"model.attention must be one of {', '.join(BACKENDS)}; got {backend!r}")
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if backend.startswith("flash") and precision == "32-true":
        raise ConfigError(
            f"model.attention={backend} computes in half precision alone: set trainer.precision=bf16-mixed"
        )
    if backend in BACKENDS[3:] and not on_gpu:
        raise ConfigError(f"model.attention={backend} trains on a GPU alone: set model.attention=sdpa")
    if backend == "auto" and on_gpu and precision != "32-true":
        from transformers.utils import is_flash_attn_2_available

        return "flash_attention_2" if is_flash_attn_2_available() else "auto"
    return backend


def set_attention(model: PreTrainedModel, backend: str) -> str:
    """Make a model compute with a backend; `auto` is sdpa, or whatever the model has where it has no sdpa.

    Returns:
        The name of what it now computes with, as transformers knows it.

    Raises:
        ConfigError: the model has no such attention, or a package is missing; the message says which.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(BY_RESPONSE, attend)
    AttentionMaskInterface.register(BY_RESPONSE, plan_or_mask)
    wanted = BY_RESPONSE if backend in ("auto", "sdpa") else backend
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        if backend != "auto":
            raise ConfigError(f"model.attention={backend}: {str(error).splitlines()[0]}") from error
    held = str(model.config._attn_implementation)
    if held != wanted and backend != "auto":
        raise ConfigError(f"model.attention={backend}: {type(model).__name__} has attention of its own; set auto")
    return held


def isolates(backend: str) -> bool:
    """Whether a backend, as transformers knows it, keeps packed responses apart without a mask of L x L."""
    return backend == BY_RESPONSE or backend in BACKENDS[3:]
