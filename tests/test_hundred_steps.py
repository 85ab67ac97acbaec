"""A hundred real optimizer steps of every experiment on the bundled model: finite, learning, logged per part.

`nox -s learning` runs them all, the slow tests a sample.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from omegaconf import open_dict

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.rollout.recorded import read_recorded

STEPS = 100
# Of each kind one: both papers' heart, a ratio a response, a choice of the step.
SAMPLE = ("archer_lp_reg", "gspo", "clip_cov")
# Of the difference that every experiment makes; an optimizer with optim.lr=0 comes to 1e-5 [nats a response].
MARGIN = 0.1
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


def changes(model: Any, folder: Path) -> tuple[float, float]:
    """By how much a policy finds the responses of a run more probable than the policies that drew them did [nats].

    Means over those of positive and over those of negative advantage. With a dead optimizer both are rounding, and with
    one that goes the wrong way the second is above the first, whatever luck the rewards had.
    """
    drawn = [record for record in read_recorded(folder) if record["advantage"]]
    changed: dict[bool, list[float]] = {True: [], False: []}
    for start in range(0, len(drawn), 128):
        batch = drawn[start : start + 128]
        rows = [torch.tensor(record["prompt_token_ids"] + record["token_ids"]) for record in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        for row, record in zip(logprobs, batch, strict=True):
            first, length = len(record["prompt_token_ids"]) - 1, len(record["token_ids"])
            now = float(row[first : first + length].sum())
            changed[record["advantage"] > 0].append(now - sum(record["logprobs"]))
    return fmean(changed[True]), fmean(changed[False])


def check_that_it_learns(name: str, tmp_path: Path) -> None:
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
    taught, discouraged = changes(run.module.policy.causal_lm, tmp_path / "rollouts")
    assert taught - discouraged > MARGIN, (taught, discouraged)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_learns(name: str, tmp_path: Path) -> None:
    check_that_it_learns(name, tmp_path)


@pytest.mark.learning
@pytest.mark.parametrize("name", experiments())
def test_it_learns(name: str, tmp_path: Path) -> None:
    check_that_it_learns(name, tmp_path)
