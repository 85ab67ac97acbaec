"""A configuration made into a run: components, module, data module, trainer."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.callbacks.failure import FailureCallback
from rlvr_lightning.callbacks.hygiene import HygieneCallback
from rlvr_lightning.callbacks.table import MetricsTable
from rlvr_lightning.callbacks.watching import WatchingCallback
from rlvr_lightning.config.benchmarks import benchmark_callback
from rlvr_lightning.config.checks import check_folder, check_judge, check_kinds, check_least
from rlvr_lightning.config.components import component, grading_of, model_source, optim_settings, shard_settings
from rlvr_lightning.config.derived import DerivedNumbers
from rlvr_lightning.config.planned import check_memory
from rlvr_lightning.config.trainer import build_trainer, check_hardware, default_callbacks
from rlvr_lightning.datamodule import RolloutDataModule
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.module import RLVRModule
from rlvr_lightning.protocols.rollouts import ScreenedTask, WatchedTask
from rlvr_lightning.rollout.checks import check_on_policy
from rlvr_lightning.rollout.micro_batches import Budget
from rlvr_lightning.training.checkpoint_io import chosen, newest, read_state
from rlvr_lightning.training.checkpoints import Resume

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
    # It warns of a 4-bit kernel that is nowhere used here; its 8-bit optimizers need none.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


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
        grading=grading_of(cfg),
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
        diagnostics_every_n_steps=cfg.trainer.diagnostics_every_n_steps,
        forces_every_n_steps=cfg.trainer.forces_every_n_steps,
        reference_rate=cfg.model.reference_rate,
        weightings={name: component(cfg.weighting, name) for name in cfg.weighting or {}},
    )


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
    engine = component(cfg, "engine")
    data = build_data(cfg, source, engine)
    module = build_module(cfg, source)
    check_on_policy(data, module.objective)
    check_memory(cfg, module, data)
    measuring = benchmark_callback(cfg, source, engine)
    source.tokenizer  # noqa: B018 - a model folder without one is found out now
    table, resume = MetricsTable(Path(cfg.output_dir)), Resume()
    mine = [FailureCallback(), resume, *(callbacks or [])]
    if isinstance(data.task, ScreenedTask):
        mine.append(HygieneCallback(Path(cfg.output_dir), data.task.hygiene))
    if isinstance(data.task, WatchedTask):
        mine.append(WatchingCallback(data.task, source, data.budget))
    trainer = build_trainer(cfg, [*mine, *default_callbacks(cfg, table), *measuring], table)
    return Run(cfg, trainer, module, data, derived, resume)
