"""Settings that would make a run fit: the fewest at a time, those that change least about the run first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from rlvr_lightning.training.forecast.forecast import Forecast, forecast
from rlvr_lightning.training.forecast.setup import HALF, Setup

WANTED = 3
# From this number of settings together on, each is tried at its strongest alone.
STRONGEST_FROM = 3
MOST = 5
DEVICES_OF_A_NODE = 8


@dataclass(frozen=True)
class Remedy:
    """Overrides under which a run fits.

    Args:
        overrides: as typed, `trainer.micro_batch_tokens=8192`.
        forecast: with them.
    """

    overrides: tuple[str, ...]
    forecast: Forecast


@dataclass(frozen=True)
class _Level:
    override: str
    changed: dict[str, object]


def remedies(setup: Setup) -> list[Remedy]:
    """Up to three ways to make a run fit, of as few settings as do; none where nothing known helps."""
    knobs = [levels for levels in _knobs(setup) if levels]
    found: list[Remedy] = []
    used: list[frozenset[int]] = []
    for size in range(1, MOST + 1):
        for chosen in combinations(range(len(knobs)), size):
            if any(held <= set(chosen) for held in used):
                continue
            remedy = _first_that_fits(setup, [knobs[index] for index in chosen])
            if remedy is not None:
                found.append(remedy)
                used.append(frozenset(chosen))
            if len(found) == WANTED:
                return found
    return found


def _first_that_fits(setup: Setup, knobs: Sequence[Sequence[_Level]]) -> Remedy | None:
    tried = knobs if len(knobs) < STRONGEST_FROM else [levels[-1:] for levels in knobs]
    for levels in product(*tried):
        changed = setup
        for level in levels:
            changed = replace(changed, **level.changed)  # type: ignore[arg-type]
        outcome = forecast(changed)
        if outcome.fits:
            return Remedy(tuple(level.override for level in levels), outcome)
    return None


def _knobs(setup: Setup) -> Iterator[list[_Level]]:
    """Each setting's levels, from weak to strong."""
    yield [_Level("model.gradient_checkpointing=full", {"recompute": 1})] if setup.recompute != 1 else []
    yield _budgets(setup)
    yield _shares(setup)
    yield _engines(setup)
    yield _engine_dtype(setup)
    yield _precision(setup)
    yield _sharding(setup)
    yield _optimizers(setup)
    yield _offload(setup)
    yield _more_ranks(setup)
    yield _adapters(setup)


def _budgets(setup: Setup) -> list[_Level]:
    """Half as many tokens, and half again, down to one response of full length."""
    levels, tokens = [], setup.micro_tokens
    while tokens > setup.rollout.length:
        tokens = max(tokens // 2, setup.rollout.length)
        levels.append(_Level(f"trainer.micro_batch_tokens={tokens}", {"micro_batch_tokens": tokens}))
    return levels


def _shares(setup: Setup) -> list[_Level]:
    if setup.engine.kind != "vllm" or setup.accelerator != "gpu":
        return []
    now = round(setup.engine.share * 20)
    further = [*range(now - 1, 1, -1), *range(now + 1, 19)]
    return [
        _Level(f"engine.gpu_memory_utilization={step / 20:g}", {"engine": replace(setup.engine, share=step / 20)})
        for step in further
    ]


def _engines(setup: Setup) -> list[_Level]:
    engine = setup.engine
    if engine.kind == "transformers" and engine.batch_size > 1:
        sizes = [size for size in (128, 64, 32, 16, 8) if size < engine.batch_size]
        return [_Level(f"engine.batch_size={size}", {"engine": replace(engine, batch_size=size)}) for size in sizes]
    return []


def _engine_dtype(setup: Setup) -> list[_Level]:
    if setup.engine.number_bytes == HALF:
        return []
    return [_Level("engine.dtype=bfloat16", {"engine": replace(setup.engine, number_bytes=HALF)})]


def _precision(setup: Setup) -> list[_Level]:
    if setup.half or setup.accelerator == "cpu":
        return []
    engine = replace(setup.engine, number_bytes=min(setup.engine.number_bytes, HALF))
    return [_Level("trainer.precision=bf16-mixed", {"half": True, "engine": engine})]


def _sharding(setup: Setup) -> list[_Level]:
    if setup.ranks == 1:
        return []
    if setup.strategy != "fsdp":
        return [_Level("strategy=fsdp", {"strategy": "fsdp", "shard_over": "all"})]
    levels = []
    if setup.holds_gradient:
        levels.append(_Level("strategy.reduce_gradients=micro_batch", {"reduce": "micro_batch"}))
    if setup.shard_over == "node" and setup.num_nodes > 1:
        levels.append(_Level("strategy.shard_over=all", {"shard_over": "all"}))
    return levels


def _optimizers(setup: Setup) -> list[_Level]:
    """State in 8 bits, where the optimizer can step the weights: on a GPU, not sharded."""
    if setup.strategy == "fsdp" or setup.accelerator == "cpu" or setup.optimizer == "adamw_8bit":
        return []
    return [_Level("optim.name=adamw_8bit", {"optimizer": "adamw_8bit"})]


def _offload(setup: Setup) -> list[_Level]:
    if setup.strategy != "fsdp" or setup.cpu_offload or setup.accelerator == "cpu":
        return []
    return [_Level("strategy.cpu_offload=true", {"cpu_offload": True})]


def _more_ranks(setup: Setup) -> list[_Level]:
    """Shards become smaller with more ranks; on the CPU they would all be in this host's memory."""
    if setup.accelerator == "cpu" or setup.strategy == "ddp" or setup.shard_over == "node":
        return []
    prefix = "" if setup.strategy == "fsdp" else "strategy=fsdp "
    on_node = [count for count in (2, 4, 8) if count > setup.devices]
    sharded = {"strategy": "fsdp", "shard_over": "all"}
    levels = [_Level(f"{prefix}trainer.devices={count}", {"devices": count, **sharded}) for count in on_node]
    if setup.devices >= DEVICES_OF_A_NODE:
        nodes = [setup.num_nodes * factor for factor in (2, 4)]
        levels += [_Level(f"{prefix}trainer.num_nodes={count}", {"num_nodes": count, **sharded}) for count in nodes]
    return levels


def _adapters(setup: Setup) -> list[_Level]:
    if setup.adapter_rank is not None:
        return []
    lora = {"adapter_rank": 16, "adapter_targets": "all-linear", "reference": False}
    return [_Level("peft=lora", lora)]
