"""A hundred real optimizer steps of every experiment on the bundled model: finite, learning, logged per part."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from omegaconf import open_dict

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose, config_dir

pytestmark = pytest.mark.slow

STEPS = 100
SIZES = (
    "engine=transformers",
    "trainer.accelerator=cpu",
    "trainer.show_every_n_epochs=0",
    "trainer.val_every_n_epochs=1000",
    "task.num_held_out=4",
    "rollout.eval_samples=1",
    "rollout.prompts_per_epoch=8",
)


def experiments() -> list[str]:
    """Those for the bundled model."""
    found = sorted(file.stem for file in (config_dir() / "experiment").glob("*.yaml"))
    return [name for name in found if compose([f"conf={name}"]).hardware.gpus == 0]


@pytest.mark.parametrize("name", experiments())
def test_it_learns(name: str, tmp_path: Path) -> None:
    cfg = compose([f"conf={name}", *SIZES, f"output_dir={tmp_path}"])
    with open_dict(cfg):
        cfg.rollout.prompts_per_step = 4 if cfg.rollout.prompts_per_step else None
        steps = (2 if cfg.rollout.prompts_per_step else 1) * cfg.rollout.passes
        cfg.trainer.max_epochs = STEPS // steps
    run = build_run(cfg)
    run.fit()
    assert run.module.policy_version == STEPS
    with (tmp_path / "logs" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["reward/mean"]]
    assert len(rows) == cfg.trainer.max_epochs
    for row in rows:
        assert float(row["policy/skipped_steps"]) == 0
        assert all(math.isfinite(float(value)) for value in row.values() if value)
    for part in run.module.objective.partitioner.parts:
        assert sum(bool(row[f"policy/entropy/{part}"]) for row in rows) > len(rows) / 2
    rewards = [float(row["reward/mean"]) for row in rows]
    fifth = len(rewards) // 5
    start, end = (sum(some) / fifth for some in (rewards[:fifth], rewards[-fifth:]))
    assert end >= start, (start, end)
