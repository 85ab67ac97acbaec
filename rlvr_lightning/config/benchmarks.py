"""A configuration made into benchmarks and the policies to be measured on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.callbacks.benchmarks import BenchmarkCallback, benchmark_folder
from rlvr_lightning.callbacks.failure import FailureCallback
from rlvr_lightning.config.components import component, grading_of, model_source, shard_settings
from rlvr_lightning.config.trainer import bare_trainer
from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.evaluation.benchmarks.benchmark import Benchmark
from rlvr_lightning.evaluation.benchmarks.published import Published
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.module import RLVRModule
from rlvr_lightning.rollout.benchmarks.data import BenchmarkData
from rlvr_lightning.rollout.benchmarks.runner import BenchmarkRunner
from rlvr_lightning.rollout.synced import SyncedEngine
from rlvr_lightning.training.checkpoint_io import chosen, step_of
from rlvr_lightning.training.checkpoints import Resume

# Of the protocol, for all benchmarks at once.
SHARED = ("samples", "temperature", "top_p", "max_new_tokens", "limit")


@dataclass(frozen=True)
class Candidate:
    """A policy to be measured.

    Args:
        label: its name in tables, and of its folder.
        cfg: whose `model` and `peft` it is.
        checkpoint: its weights; None for the model's own.
        folder: of its results.
        about: what identifies it in the files.
    """

    label: str
    cfg: DictConfig
    checkpoint: Path | None
    folder: Path
    about: dict[str, Any]


class BenchmarkedModule(RLVRModule):
    """A policy whose test batches are names of benchmarks."""

    def test_step(self, name: str, batch_idx: int) -> None:  # type: ignore[override]
        """Measure."""
        cast(BenchmarkData, self._data).measure(name)

    def on_test_epoch_end(self) -> None:
        """What was measured is in the files."""


def benchmarks_of(cfg: DictConfig) -> dict[str, Benchmark]:
    """The benchmarks asked for, by name, with what `evaluation` says for all of them.

    Raises:
        ConfigError: a setting is out of range.
    """
    chosen_nodes = OmegaConf.create(OmegaConf.to_container(cfg.benchmark, resolve=True))
    for node in chosen_nodes.values():
        for key in SHARED:
            if cfg.evaluation[key] is not None:
                node[key] = cfg.evaluation[key]
    return {str(name): component(chosen_nodes, str(name)) for name in chosen_nodes}


def published_of(cfg: DictConfig) -> list[Published]:
    """The suite's published rows."""
    rows = cfg.benchmarks.published
    return [component(rows, index) for index in range(len(rows))]


def runner_maker(cfg: DictConfig, source: ModelSource, engine: Any) -> Callable[[int], BenchmarkRunner]:
    """Makes a runner, given the ranks of this machine.

    Raises:
        ConfigError: a setting is out of range.
    """
    settings = cfg.evaluation
    if settings.batch_responses < 1:
        raise ConfigError(f"evaluation.batch_responses must be at least 1; got {settings.batch_responses}")
    files = None if settings.folder is None else Path(settings.folder).expanduser()
    made = (source, engine, benchmarks_of(cfg), files, grading_of(cfg), cfg.seed, settings.batch_responses)
    return partial(BenchmarkRunner, *made)


def benchmark_callback(cfg: DictConfig, source: ModelSource, engine: Any) -> list[BenchmarkCallback]:
    """What measures while the run learns; nothing where nothing is asked for.

    Raises:
        ConfigError: benchmarks without a number of steps, or the other way round.
    """
    every = cfg.evaluation.every_n_steps
    if (every is None) is not (not cfg.benchmark):
        raise ConfigError(
            "fit measures benchmarks every few optimizer steps: benchmark=[NAME,...] and evaluation.every_n_steps=N go together"
        )
    if every is None:
        return []
    return [BenchmarkCallback(runner_maker(cfg, source, engine), every, {"model": cfg.model.path, "run": None})]


def candidates(cfg: DictConfig) -> list[Candidate]:
    """The policies to be measured: `evaluation.models`, or the run's, or the model.

    Raises:
        CheckpointError: a run has no such checkpoint.
        ConfigError: two of them have the same name.
    """
    if not cfg.evaluation.models:
        if cfg.resume is None:
            return [_of_model(cfg, cfg.model.path)]
        own = chosen(Path(cfg.resume) / "checkpoints", cfg.export.checkpoint)
        version = step_of(own)
        about = {"model": cfg.model.path, "run": None, "policy_version": version}
        return [Candidate(own.name, cfg, own, benchmark_folder(Path(cfg.output_dir), version), about)]
    found = [_of_path(cfg, str(path)) for path in cfg.evaluation.models]
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two of evaluation.models are called {label}: measure them into two output folders")
    return found


def _of_path(cfg: DictConfig, path: str) -> Candidate:
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        return _of_run(cfg, folder, chosen(folder / "checkpoints", cfg.export.checkpoint))
    if folder.parent.name == "checkpoints" and folder.is_dir():
        return _of_run(cfg, folder.parents[1], folder)
    return _of_model(cfg, path)


def _of_run(cfg: DictConfig, run: Path, checkpoint: Path) -> Candidate:
    config = run / "config.yaml"
    if not config.is_file():
        raise CheckpointError(f"{run} holds no run: its config.yaml is missing")
    saved = OmegaConf.load(config)
    assert isinstance(saved, DictConfig)
    own = cast(DictConfig, OmegaConf.merge(cfg))
    own.model, own.peft = OmegaConf.merge(cfg.model, saved.model), saved.peft
    label, version = f"{run.resolve().name}-{checkpoint.name}", step_of(checkpoint)
    about = {"model": own.model.path, "run": str(run.resolve()), "policy_version": version}
    return Candidate(label, own, checkpoint, Path(cfg.output_dir) / "benchmarks" / label, about)


def _of_model(cfg: DictConfig, path: str) -> Candidate:
    own = cast(DictConfig, OmegaConf.merge(cfg, {"model": {"path": path}}))
    label = path.rstrip("/").replace("\\", "/").rpartition("/")[2]
    about = {"model": path, "weights": _weights(Path(ModelSource(path).folder))}
    return Candidate(label, own, None, Path(cfg.output_dir) / "benchmarks" / label, about)


def _weights(folder: Path) -> str | None:
    """A name of a folder's weights, so that others put in their place are noticed; None for a hub's name."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None
    told = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def build_candidate(cfg: DictConfig, one: Candidate) -> tuple[L.Trainer, BenchmarkedModule, BenchmarkData]:
    """Everything that measures a policy; nothing is loaded or written.

    Raises:
        RLVRError: a setting is wrong, a file is missing, or the hardware is.
    """
    source = model_source(one.cfg)
    engine = component(cfg, "engine")
    module = BenchmarkedModule(source, sharding=shard_settings(cfg))
    data = BenchmarkData(runner_maker(cfg, source, engine), SyncedEngine(engine, source), one.folder, one.about)
    return bare_trainer(cfg, [FailureCallback(), Resume(one.checkpoint)]), module, data
