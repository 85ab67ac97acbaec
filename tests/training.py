"""Short real runs for the tests: the bundled model, the real engine, the real verifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_lightning.callbacks.outputs import CurvesCallback
from rlvr_lightning.config.build import Run, build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.rollout.recorded import read_recorded
from rlvr_lightning.training.checkpoint_io import WEIGHTS, newest
from rlvr_lightning.training.shards import load_shards, saved_tensors

SMALL = (
    "engine=transformers",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.val_every_n_epochs=2",
    "trainer.show_every_n_epochs=0",
    "rollout.prompts_per_epoch=8",
    "rollout.group_size=4",
    "rollout.eval_samples=2",
    "task.num_held_out=4",
    # Twenty thousand prompts would take longer to make than the run to learn from a few of them.
    "task.num_train=400",
)


def fit(output_dir: Path, *overrides: str) -> Run:
    """Train for two epochs of eight prompts, unless the overrides say otherwise."""
    run = build_run(compose([*SMALL, *overrides, f"output_dir={output_dir}"]))
    run.fit()
    return run


# Taken before a test begins: in tests runs draw no curves.
_draw = CurvesCallback.on_fit_end


@contextmanager
def drawn() -> Iterator[None]:
    """Runs herein draw their curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CurvesCallback, "on_fit_end", _draw)
        yield


def recorded(folder: Path, version: int | None = None) -> list[dict[str, Any]]:
    """Responses of a run's phase (or of all), prompt by prompt, whatever ranks drew them."""
    rows = [row for row in read_recorded(folder / "rollouts") if version in (None, row["phase"])]
    return sorted(rows, key=lambda row: (row["phase"], row["prompt_index"], row["sample"]))


def weights(run: Run) -> torch.Tensor:
    """All trained weights in a row."""
    return torch.cat([weight.flatten() for _, weight in run.module.policy.full_weights()])


def last_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint but the random state: the weights and the optimizer's."""
    path = newest(folder / "checkpoints") / WEIGHTS
    held = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in saved_tensors(path).items()}
    load_shards(path, held, None)
    return {name: value for name, value in held.items() if not name.startswith("random.")}


def widest_difference(one: Path, other: Path) -> float:
    """Between the last checkpoints of two runs."""
    mine, theirs = last_checkpoint(one), last_checkpoint(other)
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
