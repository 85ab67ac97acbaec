"""Lightning's trainer as configured, and whether this machine can hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.callbacks.buffers import DropBuffers
from rlvr_lightning.callbacks.drift import DriftWarning
from rlvr_lightning.callbacks.measure import MeasureAtTheEnd
from rlvr_lightning.callbacks.outputs import CurvesCallback, ProvenanceCallback
from rlvr_lightning.callbacks.profile import ProfileCallback
from rlvr_lightning.callbacks.screen import ScreenCallback
from rlvr_lightning.callbacks.table import Events, MetricsTable, TableCallback
from rlvr_lightning.config.components import shard_settings
from rlvr_lightning.errors import ConfigError, HardwareError
from rlvr_lightning.training.checkpoints import Checkpoints
from rlvr_lightning.training.interrupt import InterruptCallback
from rlvr_lightning.training.strategies import make_strategy


def default_callbacks(cfg: DictConfig, table: MetricsTable) -> list[Callback]:
    """Screen, checkpoints and outputs."""
    folder = Path(cfg.output_dir)
    settings = cfg.trainer
    every = (settings.val_every_n_epochs, settings.save_every_n_steps, settings.save_every_n_minutes)
    return [
        InterruptCallback(),
        MeasureAtTheEnd(),
        ScreenCallback(settings.show_every_n_epochs),
        ProvenanceCallback(folder, OmegaConf.to_yaml(cfg, resolve=True)),
        TableCallback(table),
        DriftWarning(),
        DropBuffers(folder),
        CurvesCallback(folder),
        Checkpoints(folder / "checkpoints", *every),
        *([ProfileCallback(folder)] if settings.profile else []),
    ]


def build_trainer(cfg: DictConfig, callbacks: list[Callback], table: MetricsTable) -> L.Trainer:
    """Lightning's trainer as configured."""
    settings = cfg.trainer
    trainer = _trainer(
        cfg,
        callbacks,
        max_epochs=settings.max_epochs,
        check_val_every_n_epoch=settings.val_every_n_epochs,
        num_sanity_val_steps=-1,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=1,
        logger=[table, Events(Path(cfg.output_dir))],
    )
    check_steps(cfg, trainer.num_devices * trainer.num_nodes)
    return trainer


def bare_trainer(cfg: DictConfig, callbacks: list[Callback]) -> L.Trainer:
    """One that only measures, on the same devices."""
    return _trainer(cfg, callbacks, logger=False)


def _trainer(cfg: DictConfig, callbacks: list[Callback], **more: Any) -> L.Trainer:
    settings = cfg.trainer
    # FSDP2 casts what it gathers by itself.
    precision = "32-true" if cfg.strategy.name == "fsdp" else settings.precision
    try:
        trainer = L.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=make_strategy(cfg.strategy.name, cpu_offload=shard_settings(cfg).cpu_offload),
            precision=cast(Any, precision),
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
            callbacks=callbacks,
            **more,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        asked = f"trainer.accelerator={settings.accelerator}, trainer.devices={settings.devices}"
        raise HardwareError(f"{asked} cannot be had here: {reason}") from error
    check_ranks(cfg, trainer.num_devices * trainer.num_nodes)
    return trainer


def check_ranks(cfg: DictConfig, ranks: int) -> None:
    """Can the run be shared by as many ranks as Lightning will start?

    Raises:
        ConfigError: one process is asked for.
    """
    if cfg.strategy.name == "single" and ranks != 1:
        raise ConfigError(
            f"strategy=single runs one process, but trainer.devices={cfg.trainer.devices} x trainer.num_nodes="
            f"{cfg.trainer.num_nodes} are {ranks} ranks: choose strategy=ddp or strategy=fsdp, or trainer.devices=1"
        )


def check_steps(cfg: DictConfig, ranks: int) -> None:
    """Can an optimizer step be shared evenly?

    Raises:
        ConfigError: it cannot.
    """
    per_step = cfg.rollout.prompts_per_step or cfg.rollout.prompts_per_epoch
    if per_step % ranks:
        raise ConfigError(f"rollout.prompts_per_step={per_step} must be a multiple of the {ranks} ranks")


def check_hardware(cfg: DictConfig) -> None:
    """Refuse a run this machine cannot hold.

    Raises:
        HardwareError: too few GPUs, or too small ones.
    """
    needed, memory = cfg.hardware.gpus, cfg.hardware.gpu_memory_gb
    if not needed:
        return
    here = torch.cuda.device_count()
    smallest = min((torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(here)), default=0.0)
    if here * cfg.trainer.num_nodes < needed or smallest < memory:
        raise HardwareError(
            f"{cfg.name} needs {needed} GPUs of {memory} GiB; here are {here} on {cfg.trainer.num_nodes} node(s)"
            + (f" of {smallest:.0f} GiB" if here else "")
            + ": run it there, or set hardware.gpus=0 to try all the same"
        )
