"""`study conf=NAME`: all runs of a study, and its report; `study report=DIR`: the report once more."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlvr_lightning.cli.verbs import fit
from rlvr_lightning.config.checks import check_kinds, check_least
from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.resuming import settled
from rlvr_lightning.errors import ConfigError, DataError, RLVRError
from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.study.launch import launch, written_to
from rlvr_lightning.study.report import write_report
from rlvr_lightning.study.spec import FINISHED, RUNS, Job, Study

SPEC = "study.yaml"
# Between two looks at which runs have ended [seconds].
LOOK = 1.0


def study(arguments: Sequence[str]) -> int:
    """Run what is not finished, then report.

    Args:
        arguments: `conf=NAME` and overrides of the study (`study.seeds=[0,1]`, `output_dir=DIR`) and of Hydra
            (`hydra/launcher=submitit_slurm`, `hydra.launcher.n_jobs=4`); or `report=DIR`.

    Returns:
        The exit code: 2 where runs have failed.

    Raises:
        ConfigError: the study is none, or the folder holds another one.
    """
    report = [item.removeprefix("report=") for item in arguments if item.startswith("report=")]
    if report:
        return _report(Path(report[0]).expanduser(), arguments)
    overrides, options, places = _sorted(arguments)
    settings, folder = _settings([*overrides, *places])
    found = Study.of(settings)
    _check(found, folder, places)
    _keep(settings, folder)
    failures = _run(found, folder, [*_launcher(options), *places])
    for job, error in failures:
        Console(stderr=True).print(
            f"failed: {job.method}, seed {job.seed}: {error} (see {job.folder}.log)", soft_wrap=True
        )
    Console().print(f"report: {write_report(found, folder)}", soft_wrap=True)
    return 2 if failures else 0


def _sorted(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Overrides of the study, Hydra's own for the launcher, and where else configurations lie (`--config-dir DIR`)."""
    rest, places = list(arguments), list[str]()
    for option in ("--config-dir", "-cd"):
        if option in rest[:-1]:
            place = rest.index(option)
            places = [f"hydra.searchpath=['file://{Path(rest[place + 1]).expanduser().resolve()}']"]
            del rest[place : place + 2]
    if unknown := [item for item in rest if item.startswith("-")]:
        raise ConfigError(f"study has no option {unknown[0]}: there is --config-dir DIR")
    own = [item for item in rest if item.startswith(("hydra/", "hydra."))]
    return [item for item in rest if item not in own], own, places


def _settings(overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    chosen = [f"study={item.removeprefix('conf=')}" if item.startswith("conf=") else item for item in overrides]
    if not any(item.startswith("study=") for item in chosen):
        raise ConfigError("study needs conf=NAME, or report=DIR of one that was run")
    cfg = compose(chosen, "study")
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg.study))
    return settings, Path(cfg.output_dir).expanduser().resolve()


def _check(found: Study, folder: Path, places: Sequence[str]) -> None:
    """What the last of the methods gets wrong is told before the first run."""
    # The first seed of each method comes before all others.
    for job in found.jobs(folder)[: len(found.methods)]:
        try:
            cfg = compose([*job.overrides, *places])
            check_kinds(cfg)
            check_least(cfg)
        except RLVRError as error:
            raise ConfigError(f"study.methods.{job.method}: {error}") from error


def _keep(settings: dict[str, Any], folder: Path) -> None:
    """Write down what the folder is of; another study's is refused, one with more methods or seeds goes on."""
    path = folder / SPEC
    if path.exists():
        held = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))
        begun = [name for name in held["methods"] if (folder / RUNS / name).exists()]
        changed = [
            name
            for name in begun
            if name in settings["methods"]
            and list(held["methods"][name]["overrides"]) != list(settings["methods"][name]["overrides"])
        ]
        if changed or (begun and list(held["overrides"]) != list(settings["overrides"])):
            what = f"method {changed[0]}" if changed else "overrides of all runs"
            raise ConfigError(f"output_dir={folder} holds a study with other settings ({what}): choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(settings)).encode())


def _launcher(options: Sequence[str]) -> list[str]:
    """Hydra's options, with a run a core where nobody says otherwise and the plugin is there."""
    plugins = find_spec("hydra_plugins") is not None
    joblib = plugins and find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    if any(item.startswith("hydra/launcher=") for item in options) or not joblib:
        return list(options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # What is said later goes before.
    return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={cores}", *options]


def _run(found: Study, folder: Path, options: Sequence[str]) -> list[tuple[Job, Exception]]:
    jobs = found.jobs(folder)
    waiting = [job for job in jobs if not job.finished]
    if not waiting:
        return []
    over = threading.Event()
    watcher = threading.Thread(target=_show, args=(jobs, over), daemon=True)
    watcher.start()
    try:
        return launch(waiting, folder, options, partial(run_one, threads=found.threads))
    finally:
        over.set()
        watcher.join()


def run_one(cfg: DictConfig, threads: int) -> None:
    """A run, in whatever process the launcher chose; what it would show goes to a file beside its folder.

    Args:
        cfg: as Hydra composed it.
        threads: that it computes with.
    """
    torch.set_num_threads(threads)
    settings = settled(cfg, (), training=True)
    folder, began = Path(settings.output_dir), time.time()
    with written_to(folder.with_name(f"{folder.name}.log")):
        try:
            fit(settings)
        except Exception:
            traceback.print_exc()
            raise
        finally:
            # They hold the file that is closed now.
            logging.getLogger().handlers.clear()
    write_whole(folder / FINISHED, (json.dumps({"seconds": round(time.time() - began)}) + "\n").encode())


def _show(jobs: Sequence[Job], over: threading.Event) -> None:
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # A screen of its own: a run in this process sends what it shows to its file.
    with os.fdopen(os.dup(2), "w") as screen, Progress(*columns, console=Console(file=screen)) as progress:
        bar = progress.add_task("runs", total=len(jobs), completed=sum(job.finished for job in jobs))
        while not over.wait(LOOK):
            progress.update(bar, completed=sum(job.finished for job in jobs))
        progress.update(bar, completed=sum(job.finished for job in jobs))


def _report(folder: Path, arguments: Sequence[str]) -> int:
    if len(arguments) > 1:
        raise ConfigError("study report=DIR takes nothing else")
    path = folder / SPEC
    if not path.exists():
        raise DataError(f"report={folder}: there is no {SPEC} of a study")
    settings = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))
    Console().print(f"report: {write_report(Study.of(settings), folder.resolve())}", soft_wrap=True)
    return 0
