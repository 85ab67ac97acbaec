"""From a configuration to what the forecast reads, and the refusal of what cannot fit."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.config.derived import first_rank
from rlvr_lightning.datamodule import RolloutDataModule
from rlvr_lightning.errors import ConfigError, HardwareError, ModelError
from rlvr_lightning.models.recompute import every_nth
from rlvr_lightning.models.shapes import ModelShape, model_shape
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.module import RLVRModule
from rlvr_lightning.objective.statistics import EntropyFlow, merge_statistics
from rlvr_lightning.rollout.engines.dtypes import engine_dtype
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed
from rlvr_lightning.rollout.prompts import tokenize
from rlvr_lightning.training.forecast.forecast import Forecast, forecast
from rlvr_lightning.training.forecast.remedies import remedies
from rlvr_lightning.training.forecast.setup import GIB, EngineSetup, RolloutSetup, Setup
from rlvr_lightning.training.precision import compute_dtype
from rlvr_lightning.training.sharding import GRADIENT_SHARE

# Prompts looked at before a run is refused.
SAMPLED_PROMPTS = 200


def setup_of(cfg: DictConfig, module: RLVRModule) -> Setup:
    """A run's settings as far as memory and work depend on them.

    Args:
        cfg: as composed.
        module: built from it; nothing of it is loaded.

    Raises:
        ConfigError: settings contradict each other.
        ModelError: the model's shape is nowhere here, or of an architecture not known.
    """
    shape = model_shape(ModelSource(cfg.model.path).folder)
    accelerator = _accelerator(cfg)
    devices = _devices(cfg, accelerator)
    rollout = _rollout(cfg, shape)
    sharding, lora = module.sharding, module.source.lora
    reference = module.objective.requires_ref
    dtype = compute_dtype(cfg.trainer.precision)
    return Setup(
        shape=shape,
        accelerator=accelerator,
        device_memory=_device_memory(cfg) if accelerator == "gpu" else None,
        host_memory=_host_memory(accelerator),
        devices=devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=cfg.strategy.name,
        shard_over=sharding.shard_over,
        reshard=sharding.reshard_after_forward,
        reduce=sharding.reduce_gradients,
        gradient_room=GRADIENT_SHARE * _rank_memory(cfg, accelerator, devices),
        cpu_offload=sharding.cpu_offload,
        half=dtype.itemsize == 2,
        recompute=every_nth(cfg.model.gradient_checkpointing),
        attention=cfg.model.attention,
        packed=cfg.rollout.packing is not False and cfg.model.attention != "eager",
        micro_batch_tokens=_budget(cfg, rollout),
        optimizer=cfg.optim.name,
        adapter_rank=None if lora is None else lora.r,
        adapter_targets="all-linear" if lora is None else _targets(lora.target_modules),
        reference=reference and lora is None,
        statistics=len(merge_statistics([*module.objective.requires, EntropyFlow()])),
        kept_passes=int(rollout.steps > 1) + int(reference),
        saves_within=cfg.trainer.save_every_n_steps is not None or cfg.trainer.save_every_n_minutes is not None,
        # An engine of somebody's own need not have the setting.
        engine=_engine(cfg, engine_dtype(OmegaConf.select(cfg, "engine.dtype") or "auto", dtype).itemsize),
        rollout=rollout,
    )


def _targets(modules: Any) -> str | list[str]:
    """Names of linear layers; a pattern may mean all of them."""
    return "all-linear" if isinstance(modules, str) or modules is None else sorted(modules)


def _accelerator(cfg: DictConfig) -> Any:
    import torch

    if cfg.trainer.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() or cfg.hardware.gpus else "cpu"
    return "gpu" if cfg.trainer.accelerator in ("gpu", "cuda") else "cpu"


def _devices(cfg: DictConfig, accelerator: str) -> int:
    import torch

    if isinstance(cfg.trainer.devices, int):
        return cfg.trainer.devices
    if accelerator == "cpu":
        return 1
    return torch.cuda.device_count() or max(1, cfg.hardware.gpus // cfg.trainer.num_nodes)


def _device_memory(cfg: DictConfig) -> float | None:
    """Of the smallest GPU here; without one, what the configuration asks for [bytes]."""
    import torch

    here = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    named = cfg.hardware.gpu_memory_gb * GIB
    return float(min(here)) if here else float(named) or None


def _rank_memory(cfg: DictConfig, accelerator: str, devices: int) -> float:
    """All memory of a rank's device, as `training/sharding.py` counts it [bytes]; boundless where it is not known."""
    if accelerator == "gpu":
        return _device_memory(cfg) or math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices


def _host_memory(accelerator: str) -> float | None:
    """What this host has to spare [bytes]; None where it is not the host the run is for, or does not say."""
    import torch

    meminfo = Path("/proc/meminfo")
    if not meminfo.exists() or (accelerator == "gpu" and not torch.cuda.is_available()):
        return None
    held = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return float(held["MemAvailable"].split()[0]) * 1024


def _rollout(cfg: DictConfig, shape: ModelShape) -> RolloutSetup:
    rollout = cfg.rollout
    prompt = rollout.max_prompt_tokens
    if shape.positions is not None:
        prompt = min(prompt, shape.positions - rollout.max_new_tokens)
    if prompt < 1:
        raise ConfigError(
            f"rollout.max_new_tokens={rollout.max_new_tokens} leaves no room for a prompt: the model has "
            f"{shape.positions} positions"
        )
    return RolloutSetup(
        rollout.prompts_per_epoch,
        rollout.prompts_per_step or rollout.prompts_per_epoch,
        rollout.passes,
        rollout.group_size,
        rollout.generation_batches,
        prompt,
        rollout.max_new_tokens,
        cfg.trainer.max_epochs,
    )


def _budget(cfg: DictConfig, rollout: RolloutSetup) -> int:
    """Tokens of a micro-batch at most, `trainer.micro_batch_size` responses of full length included."""
    tokens, rows = cfg.trainer.micro_batch_tokens, cfg.trainer.micro_batch_size
    return int(tokens if rows is None else min(tokens, rows * rollout.length))


def _engine(cfg: DictConfig, number_bytes: int) -> EngineSetup:
    kind = str(cfg.engine._target_).rpartition(".")[2]
    if kind == "VLLMEngine":
        return EngineSetup("vllm", number_bytes, cfg.engine.gpu_memory_utilization, cfg.engine.cpu_kv_cache_gb * GIB)
    if kind == "TransformersEngine":
        return EngineSetup("transformers", number_bytes, batch_size=cfg.engine.batch_size)
    if kind == "auto_engine" and vllm_installed():
        return EngineSetup("vllm", number_bytes, 0.4, GIB)
    # Of an engine of somebody's own, at least a copy of the weights.
    return EngineSetup("transformers", number_bytes)


def check_memory(cfg: DictConfig, module: RLVRModule, data: RolloutDataModule) -> None:
    """Refuse a run that needs more memory than is here, beyond what the forecast may be wrong by.

    Prompts count as `rollout.max_prompt_tokens` at first, and where that is too much, as the longest of some of them.

    Raises:
        HardwareError: it does; the message names what would make it fit.
    """
    if not cfg.hardware.check or not first_rank():
        return
    try:
        planned = forecast(setup_of(cfg, module))
        if planned.certainly_too_large:
            planned = forecast(_with_real_prompts(planned.setup, data))
    except ModelError:  # an architecture whose needs are not known here
        return
    if planned.certainly_too_large:
        short = planned.certainly_too_large[0]
        raise HardwareError(
            f"{cfg.name} needs {short.needed / GIB:.1f} GiB of {short.place}, and {short.there / GIB:.1f} are there: "
            f"{advice(planned)}; hardware.check=false tries it all the same"
        )


def _with_real_prompts(setup: Setup, data: RolloutDataModule) -> Setup:
    problems = data.task.train()
    some = problems[:: max(1, len(problems) // SAMPLED_PROMPTS)]
    longest = max(map(len, tokenize(some, data.source.tokenizer)))
    rollout = replace(setup.rollout, prompt_tokens=min(setup.rollout.prompt_tokens, longest))
    return replace(setup, rollout=rollout)


def advice(planned: Forecast) -> str:
    """What would make it fit, with the resulting totals, in one line."""
    ways = remedies(planned.setup)
    if not ways:
        return "no setting known here makes it fit"
    named = [f"{' '.join(way.overrides)} ({total(way.forecast) / GIB:.1f} GiB)" for way in ways]
    return f"it would fit with {', or '.join(named)}"


def total(planned: Forecast) -> float:
    """What is short where something is: a GPU's memory, or on the CPU the host's [bytes]."""
    return planned.device_total if planned.setup.accelerator == "gpu" else planned.host_total
