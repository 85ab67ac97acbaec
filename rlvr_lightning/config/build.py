"""A configuration made into a run: components, module, data module, trainer."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.callbacks.buffers import DropBuffers
from rlvr_lightning.callbacks.failure import FailureCallback
from rlvr_lightning.callbacks.hygiene import HygieneCallback
from rlvr_lightning.callbacks.measure import MeasureAtTheEnd
from rlvr_lightning.callbacks.outputs import CurvesCallback, ProvenanceCallback
from rlvr_lightning.callbacks.screen import ScreenCallback
from rlvr_lightning.callbacks.table import Events, MetricsTable, TableCallback
from rlvr_lightning.config.checks import check_folder, check_judge, check_kinds, check_least
from rlvr_lightning.config.compose import explain
from rlvr_lightning.config.derived import DerivedNumbers
from rlvr_lightning.config.planned import check_memory
from rlvr_lightning.datamodule import RolloutDataModule
from rlvr_lightning.errors import ConfigError, HardwareError
from rlvr_lightning.models.attention import resolved
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.module import RLVRModule
from rlvr_lightning.protocols.rollouts import ScreenedTask
from rlvr_lightning.rollout.checks import check_on_policy
from rlvr_lightning.rollout.micro_batches import Budget
from rlvr_lightning.training.checkpoint_io import chosen, newest, read_state
from rlvr_lightning.training.checkpoints import Checkpoints, Resume
from rlvr_lightning.training.interrupt import InterruptCallback
from rlvr_lightning.training.optim import OptimSettings
from rlvr_lightning.training.sharding import ShardSettings
from rlvr_lightning.training.strategies import make_strategy
from rlvr_lightning.verifiers.grading import Grading

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a verb needs."""

    cfg: DictConfig
    trainer: L.Trainer
    module: RLVRModule
    data: RolloutDataModule
    derived: DerivedNumbers
    resume: Resume

    @property
    def output_dir(self) -> Path:
        """Where the run leaves its files."""
        return Path(self.cfg.output_dir)

    def fit(self) -> None:
        """Train, from the start or from the newest complete checkpoint of `resume`.

        Raises:
            CheckpointError: there is none.
        """
        if self.cfg.resume is not None:
            self.resume.checkpoint = newest(self.output_dir / "checkpoints")
            epochs = read_state(self.resume.checkpoint)["progress"]["epochs"]
            if epochs >= self.cfg.trainer.max_epochs:
                log.info("finished: %s epochs are done; trainer.max_epochs=N with more of them goes on", epochs)
                return
        self.trainer.fit(self.module, self.data)

    def load(self) -> None:
        """Let the other verbs begin with the policy that `export.checkpoint` chooses of `resume`.

        Raises:
            CheckpointError: there is none.
        """
        if self.cfg.resume is not None:
            self.resume.checkpoint = chosen(self.output_dir / "checkpoints", self.cfg.export.checkpoint)


# Warnings of libraries about what is meant: no dropout to switch on, values reduced over ranks before they are logged,
# generation without workers; and a deprecated name Lightning itself uses.
MEANT = (
    r".*module\(s\) in eval mode at the start of training.*",
    r"It is recommended to use `self\.log\(.*sync_dist=True.*",
    r".*does not have many workers.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*torch\.distributed\.reduce_op.*",
    r"predict returned None.*",
    r".*is_gradient_checkpointing. is deprecated.*",
    # The first step of a run may be one that no response teaches, or have no finite gradient.
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
    # Rollouts are kept on disk: resuming in the middle of an epoch goes on with the same ones.
    r"You're resuming from a checkpoint that ended before the epoch ended.*",
)


def quiet() -> None:
    """Leave out the warnings that say nothing to a user of this package."""
    for message in MEANT:
        warnings.filterwarnings("ignore", message=message)
    for chatty in ("lightning.pytorch", "lightning.fabric", "matplotlib", "torch", "httpx", "vllm"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def component(cfg: Any, key: str) -> Any:
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


def build_data(cfg: DictConfig, source: ModelSource, engine: Any) -> RolloutDataModule:
    """The data module as configured."""
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg.rollout, resolve=True))
    return RolloutDataModule(
        source,
        component(cfg, "task"),
        component(cfg, "verifier"),
        component(cfg, "advantage"),
        engine,
        seed=cfg.seed,
        output_dir=Path(cfg.output_dir),
        shaping=component(cfg, "shaping") if cfg.shaping else None,
        grading=Grading(**cast(dict[str, Any], OmegaConf.to_container(cfg.grading, resolve=True))),
        budget=Budget(cfg.trainer.micro_batch_tokens, cfg.trainer.micro_batch_size),
        **settings,
    )


def build_module(cfg: DictConfig, source: ModelSource) -> RLVRModule:
    """The Lightning module as configured."""
    return RLVRModule(
        source,
        component(cfg, "partitioner"),
        component(cfg, "constraint"),
        {name: component(cfg.regularizer, name) for name in cfg.regularizer or {}},
        component(cfg, "aggregator"),
        component(cfg, "correction") if cfg.correction else None,
        optim_settings(cfg),
        temperature=cfg.rollout.temperature,
        eval_samples=cfg.rollout.eval_samples,
        controller=component(cfg, "controller") if cfg.controller else None,
        sharding=shard_settings(cfg),
    )


def optim_settings(cfg: DictConfig) -> OptimSettings:
    """The optimizer's numbers as configured."""
    named = cast(dict[str, Any], OmegaConf.to_container(cfg.optim, resolve=True))
    return OptimSettings(**{**named, "betas": tuple(named["betas"])})


def shard_settings(cfg: DictConfig) -> ShardSettings:
    """What FSDP2 does, as configured; its defaults under other strategies."""
    named = cast(dict[str, Any], OmegaConf.to_container(cfg.strategy, resolve=True))
    return ShardSettings(cfg.trainer.precision, **{key: value for key, value in named.items() if key != "name"})


def build_run(cfg: DictConfig, callbacks: list[Callback] | None = None) -> Run:
    """Build everything, checking all settings, and write nothing.

    Args:
        cfg: as `compose` gives it.
        callbacks: further ones for the trainer.

    Raises:
        RLVRError: a setting is wrong, a file is missing, or the hardware is.
    """
    quiet()
    check_kinds(cfg)
    check_least(cfg)
    check_folder(Path(cfg.output_dir))
    derived = DerivedNumbers.of(cfg)
    derived.show()
    check_judge(cfg, component(cfg, "verifier"))
    check_hardware(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    source = model_source(cfg)
    data = build_data(cfg, source, component(cfg, "engine"))
    module = build_module(cfg, source)
    check_on_policy(data, module.objective)
    check_memory(cfg, module, data)
    source.tokenizer  # noqa: B018 - a model folder without one is found out now
    table, resume = MetricsTable(Path(cfg.output_dir)), Resume()
    mine = [FailureCallback(), resume, *(callbacks or [])]
    if isinstance(data.task, ScreenedTask):
        mine.append(HygieneCallback(Path(cfg.output_dir), data.task.hygiene))
    trainer = build_trainer(cfg, [*mine, *default_callbacks(cfg, table)], table)
    return Run(cfg, trainer, module, data, derived, resume)


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
        DropBuffers(folder),
        CurvesCallback(folder),
        Checkpoints(folder / "checkpoints", *every),
    ]


def build_trainer(cfg: DictConfig, callbacks: list[Callback], table: MetricsTable) -> L.Trainer:
    """Lightning's trainer as configured."""
    settings, folder = cfg.trainer, Path(cfg.output_dir)
    # FSDP2 casts what it gathers by itself.
    precision = "32-true" if cfg.strategy.name == "fsdp" else settings.precision
    trainer = _trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=make_strategy(cfg.strategy.name, cpu_offload=shard_settings(cfg).cpu_offload),
        precision=cast(Any, precision),
        max_epochs=settings.max_epochs,
        check_val_every_n_epoch=settings.val_every_n_epochs,
        num_sanity_val_steps=-1,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=[table, Events(folder)],
        callbacks=callbacks,
    )
    check_ranks(cfg, trainer.num_devices * trainer.num_nodes)
    return trainer


def _trainer(**settings: Any) -> L.Trainer:
    try:
        return L.Trainer(**settings)
    except (MisconfigurationException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        asked = f"trainer.accelerator={settings['accelerator']}, trainer.devices={settings['devices']}"
        raise HardwareError(f"{asked} cannot be had here: {reason}") from error


def check_ranks(cfg: DictConfig, ranks: int) -> None:
    """Can the run be shared by as many ranks as Lightning will start?

    Raises:
        ConfigError: one process is asked for, or an optimizer step cannot be shared evenly.
    """
    if cfg.strategy.name == "single" and ranks != 1:
        raise ConfigError(
            f"strategy=single runs one process, but trainer.devices={cfg.trainer.devices} x trainer.num_nodes="
            f"{cfg.trainer.num_nodes} are {ranks} ranks: choose strategy=ddp or strategy=fsdp, or trainer.devices=1"
        )
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
