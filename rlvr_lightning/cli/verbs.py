"""What each verb does with a composed configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rlvr_lightning.errors import INTERRUPTED

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlvr_lightning.config.build import Run


Verb = Callable[["DictConfig"], None]


def _logging() -> None:
    from rich.logging import RichHandler

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)], force=True)


def _build(cfg: DictConfig) -> Run:
    from rlvr_lightning.rollout.engines.vllm.installed import check_misbuilt

    # They break what is imported next as well.
    check_misbuilt()
    from rlvr_lightning.config.build import build_run

    _logging()
    return build_run(cfg)


def fit(cfg: DictConfig) -> None:
    """Train; the last epoch is measured in any case."""
    from rlvr_lightning.config.checks import check_unused
    from rlvr_lightning.config.derived import first_rank

    if cfg.resume is None and first_rank():
        check_unused(Path(cfg.output_dir))
    run = _build(cfg)
    try:
        run.fit()
    except SystemExit as end:  # Lightning's way out of Ctrl-C, after the checkpoint is written
        if not run.trainer.interrupted:
            raise
        resumable = any((run.output_dir / "checkpoints").glob("step_*"))
        ending = (
            f"; go on with: fit resume={run.output_dir}" if resumable else " before training began: nothing is lost"
        )
        Console().print(f"interrupted{ending}", soft_wrap=True)
        raise SystemExit(INTERRUPTED) from end
    if run.trainer.is_global_zero:
        Console().print(f"outputs: {run.output_dir}", soft_wrap=True)


def validate(cfg: DictConfig) -> None:
    """avg@k and pass@k on the held-out problems, with their errors."""
    from rlvr_lightning.cli.measured import Measured, show

    run = _build(cfg)
    run.load()
    run.trainer.validate(run.module, run.data, verbose=False)
    show(Measured.of(run))


def test(cfg: DictConfig) -> None:
    """The same through Lightning's test loop, kept as files in the output folder; or benchmarks, where any are named."""
    from rlvr_lightning.cli.measured import Measured, show, write

    if cfg.benchmark:
        from rlvr_lightning.cli.benchmarks import measure_benchmarks
        from rlvr_lightning.config.build import quiet

        quiet()
        _logging()
        measure_benchmarks(cfg)
        return
    run = _build(cfg)
    run.load()
    run.trainer.test(run.module, run.data, verbose=False)
    measured = Measured.of(run)
    show(measured)
    write(measured)


def predict(cfg: DictConfig) -> None:
    """Sample responses to the held-out problems and write them with their verdicts."""
    from rlvr_lightning.rollout.store import rollout_record, write_records

    run = _build(cfg)
    run.load()
    run.trainer.predict(run.module, run.data, return_predictions=False)
    rollouts = run.module.predictions
    rank = f".rank_{run.trainer.global_rank}" if run.trainer.world_size > 1 else ""
    path = run.output_dir / f"predictions{rank}.jsonl.gz"
    write_records(path, [rollout_record(rollout, None) for rollout in rollouts])
    Console().print(f"{len(rollouts)} responses: {path}", soft_wrap=True)


def export(cfg: DictConfig) -> None:
    """Write a policy as a Hugging Face folder."""
    from rlvr_lightning.cli.export import export_run

    _logging()
    Console().print(f"exported: {export_run(cfg)}", soft_wrap=True)


def pretrain(cfg: DictConfig) -> None:
    """Make a bundled model."""
    from rlvr_lightning.config.components import component
    from rlvr_lightning.training.pretraining import pretrain as make

    _logging()
    path = make(component(cfg, "task"), component(cfg, "pretrain"), Path(cfg.output_dir))
    Console().print(f"model: {path}", soft_wrap=True)


def verify(cfg: DictConfig) -> None:
    """Judge the responses of a file."""
    from rlvr_lightning.cli.verify import verify_file
    from rlvr_lightning.config.build import quiet

    quiet()
    # On a narrower screen its lines go on below, and no number is cut.
    verify_file(cfg, Console(width=max(Console().width, 120)))
    if cfg.output is not None:
        Console().print(f"verdicts: {cfg.output}", soft_wrap=True)


def plan(cfg: DictConfig) -> None:
    """Say what a run will need, and whether it is there."""
    from rlvr_lightning.cli.plan import show_plan
    from rlvr_lightning.config.build import quiet

    quiet()
    show_plan(cfg, Console())


VERBS: dict[str, Verb] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
    "export": export,
    "plan": plan,
    "pretrain": pretrain,
    "verify": verify,
}
