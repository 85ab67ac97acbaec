"""Nodes of a configuration made into what they describe."""

from __future__ import annotations

from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.config.compose import explain
from rlvr_lightning.models.attention import resolved
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.training.optim import OptimSettings
from rlvr_lightning.training.sharding import ShardSettings
from rlvr_lightning.verifiers.grading import Grading


def component(cfg: Any, key: str | int) -> Any:
    """Instantiate the component at `key`.

    Raises:
        RLVRError: its constructor refused; the message says why.
    """
    try:
        return instantiate(cfg[key], _convert_="all")
    except (InstantiationException, TypeError) as error:
        raise explain(error) from error


def model_source(cfg: DictConfig) -> ModelSource:
    """The model as configured."""
    lora = None if cfg.peft.config is None else component(cfg.peft, "config")
    attention = resolved(cfg.model.attention, cfg.trainer.precision, cfg.trainer.accelerator)
    return ModelSource(cfg.model.path, lora, cfg.model.gradient_checkpointing, attention)


def optim_settings(cfg: DictConfig) -> OptimSettings:
    """The optimizer's numbers as configured."""
    named = cast(dict[str, Any], OmegaConf.to_container(cfg.optim, resolve=True))
    return OptimSettings(**{**named, "betas": tuple(named["betas"])})


def shard_settings(cfg: DictConfig) -> ShardSettings:
    """What FSDP2 does, as configured; its defaults under other strategies."""
    named = cast(dict[str, Any], OmegaConf.to_container(cfg.strategy, resolve=True))
    return ShardSettings(cfg.trainer.precision, **{key: value for key, value in named.items() if key != "name"})


def grading_of(cfg: DictConfig) -> Grading:
    """What becomes of verdicts, as configured."""
    return Grading(**cast(dict[str, Any], OmegaConf.to_container(cfg.grading, resolve=True)))
