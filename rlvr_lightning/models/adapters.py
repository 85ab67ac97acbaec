"""LoRA adapters: beside which weights they stand, how they begin, and what they and the weights are, merged or apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.loading import exchange, local_parameter
from rlvr_lightning.protocols import Adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER, BASE = ".lora_", ".base_layer."


def add_adapters(model: PreTrainedModel, config: Any, path: str) -> nn.Module:
    """Adapters beside the model's weights; they have no values yet.

    Raises:
        ConfigError: an adapted weight is tied to another one, or has no bias for its adapter's.
    """
    from peft import get_peft_model

    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name for group in names.values() if len(group) > 1 for name in group}
    try:
        wrapped: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"peft.config cannot be used: {str(error).splitlines()[0]}") from error
    for name, layer in _adapted(model):
        if config.lora_bias and getattr(layer.get_base_layer(), "bias", None) is None:
            raise ConfigError(
                f"peft.config.lora_bias=true adapts {name}, which has no bias to merge it into: set lora_bias=false"
            )
        if f"{name}.weight" in tied:
            raise ConfigError(
                f"peft.config.target_modules adapts {name}, whose weight model.path={path} ties to another layer's: "
                "merged, the other would change as well: leave it out"
            )
    return wrapped


def checkpoint_name(name: str) -> str | None:
    """A base weight's name in the model's folder; None for an adapter's."""
    return None if ADAPTER in name else name.replace(BASE, ".")


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    # A run without adapters does not wait for peft to be imported.
    if not any(ADAPTER in name for name, _ in model.named_parameters()):
        return []
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


@torch.no_grad()
def begin(model: nn.Module, config: Any, device: torch.device) -> None:
    """Give adapters their first values: drawn as peft draws them, from the run's seed, whatever the number of ranks.

    Every rank draws whole adapters, one layer's at a time, and keeps its rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        for _, layer in _adapted(model):
            (adapter,) = layer.active_adapters
            room = _room(layer, base=config.use_dora)
            _draw(room, adapter, config)
            drawn = dict(room.named_parameters())
            new = {
                id(parameter): local_parameter(parameter, _rows(drawn[name]), device)
                for name, parameter in layer.named_parameters()
                if ADAPTER in f".{name}"
            }
            exchange(layer, new)


def _rows(whole: Tensor) -> Callable[[slice], Tensor]:
    # Of their own: a view would keep the whole.
    return lambda rows: whole[rows].clone()


def _draw(layer: Any, adapter: str, config: Any) -> None:
    if config.init_lora_weights is False:
        for name, parameter in layer.named_parameters():
            if ADAPTER in f".{name}":
                parameter.normal_(std=0.02)
    else:
        layer.reset_lora_parameters(adapter, config.init_lora_weights)
    if config.use_dora:
        # The magnitude is the norm of the weight it begins with.
        layer.lora_variant[adapter].init(layer, adapter_name=adapter, config=config)


def _room(layer: nn.Module, *, base: bool) -> Any:
    """A copy of an adapted layer on the CPU, its adapters without values, its base weights whole if they are asked for."""
    memo: dict[int, Any] = {}
    for name, parameter in layer.named_parameters():
        if ADAPTER in f".{name}":
            value = torch.empty(parameter.shape, device="cpu")
        else:
            value = gathered(parameter).cpu() if base else torch.empty(parameter.shape, device="meta")
        memo[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(layer, memo)


def _merged(layer: nn.Module) -> nn.Module:
    """The base layer of a copy with whole weights, into which the adapters are merged."""
    whole = {id(p): nn.Parameter(gathered(p).clone(), requires_grad=False) for p in layer.parameters()}
    copied: Any = copy.deepcopy(layer, whole)
    copied.merge()
    base: nn.Module = copied.get_base_layer()
    return base


def gathered(parameter: Tensor) -> Tensor:
    """The whole of a sharded weight: a collective."""
    from torch.distributed.tensor import DTensor

    weight = parameter.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All weights under their names in the model's folder: shards gathered, adapters merged as peft merges them.

    Nothing is changed in place. Under a sharded strategy this is a collective: every rank must exhaust it.
    """
    adapted = dict(_adapted(model))
    for name, parameter in model.named_parameters():
        owner, _, rest = name.partition(BASE) if BASE in name else (name, "", "")
        if ADAPTER in name:
            continue
        if owner not in adapted:
            yield name, gathered(parameter)
        elif rest == "weight":
            for part, weight in _merged(adapted[owner]).named_parameters():
                yield f"{owner}.{part}", weight.detach()


@torch.no_grad()
def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All weights but the adapters under their names in the model's folder; a collective under a sharded strategy."""
    for name, parameter in model.named_parameters():
        if (own := checkpoint_name(name)) is not None:
            yield own, gathered(parameter)


@torch.no_grad()
def adapter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The two matrices of each plain adapter, whose product is what it adds: its scale is part of the second.

    Under a sharded strategy this is a collective: every rank must exhaust it.
    """
    for name, layer in _adapted(model):
        (adapter,) = layer.active_adapters
        yield f"{name}.lora_A.weight", gathered(layer.lora_A[adapter].weight)
        yield f"{name}.lora_B.weight", gathered(layer.lora_B[adapter].weight) * layer.scaling[adapter]


def described(model: PreTrainedModel, config: Any) -> Adapters:
    """What a model's adapters are like."""
    layers = _adapted(model)
    rank = max(layer.r[adapter] for _, layer in layers for adapter in layer.active_adapters)
    targets = tuple(sorted({name.rpartition(".")[2] for name, _ in layers}))
    head = model.get_output_embeddings()
    other = [name for name, layer in layers if type(layer.get_base_layer()) is not nn.Linear or layer is head]
    obstacle = f"{other[0]} is adapted, which is no inner linear layer" if other else ""
    for setting in ("use_dora", "lora_bias"):
        if getattr(config, setting):
            obstacle = f"{setting}=true"
    return Adapters(rank, targets, obstacle)
