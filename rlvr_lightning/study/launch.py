"""The runs of a study, through whichever Hydra launcher is chosen: one after another, over the cores, on a cluster.

Each is a normal run in a folder of its own. A study may be killed at any time: the next start goes on with what is unfinished, from
the newest checkpoint of each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlvr_lightning.config.compose import config_dir, experiment_override, explain
from rlvr_lightning.study.spec import Job


def _begun(job: Job) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any((job.folder / "checkpoints").glob("step_*"))


def _overrides(job: Job) -> list[str]:
    """Of a run that begins, or goes on."""
    place = f"hydra.sweep.subdir={job.folder.relative_to(job.folder.parents[2])}"
    return [place, *([f"resume='{job.folder}'"] if _begun(job) else map(experiment_override, job.overrides))]


def launch(
    jobs: Sequence[Job], folder: Path, options: Sequence[str], run: Callable[[DictConfig], None]
) -> list[tuple[Job, Exception]]:
    """Run them all.

    Args:
        jobs: not yet finished.
        folder: of the study.
        options: Hydra's own overrides, such as `hydra/launcher=joblib`.
        run: one of them, from its configuration, in whatever process the launcher chooses.

    Returns:
        Those that failed, with their errors; the others ran all the same.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for job in jobs:
        # What a kill before the first checkpoint left is nothing to go on from.
        if job.folder.exists() and not _begun(job):
            shutil.rmtree(job.folder)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            sweep = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir='{folder}'", *options]
            cfg = hydra.compose_config("config", sweep, RunMode.MULTIRUN, with_log_configuration=False)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run, config=cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error) from error
        ended = launcher.launch([_overrides(job) for job in jobs], initial_job_idx=0)
    failures = []
    for job, end in zip(jobs, ended, strict=True):
        try:
            end.return_value  # noqa: B018 - raises what the run raised
        except Exception as error:  # noqa: BLE001 - told to the user, run by run
            failures.append((job, error))
    return failures


@contextlib.contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Send this process's output to the end of a file, that of libraries in C included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
