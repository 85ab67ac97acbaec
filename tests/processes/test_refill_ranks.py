"""Two ranks refill a phase with the groups one process would have taken."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from training import SMALL, recorded, widest_difference

pytestmark = pytest.mark.slow

COMMON = (
    *SMALL,
    "conf=dapo",
    "seed=1",
    "task.num_train=500",
    "rollout.group_size=2",  # often both right or both wrong
    "rollout.prompts_per_step=4",
    "shaping.buffer=40",  # so that responses are long enough to be punished
    "trainer.micro_batch_size=3",
)
WARNING = "groups have unequal rewards after rollout.generation_batches=2"


def fit(folder: Path, batches: int, *overrides: str) -> str:
    """Run one and return what it says, as one line."""
    arguments = [*COMMON, f"rollout.generation_batches={batches}", f"output_dir={folder}", *overrides]
    command = [sys.executable, "-m", "rlvr_lightning", "fit", *arguments]
    done = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return " ".join(done.stdout.split())


def logged(folder: Path) -> list[dict[str, float]]:
    with (folder / "logs" / "metrics.csv").open() as lines:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in rows if "reward/mean" in row]


@pytest.mark.parametrize("batches", [10, 2])
def test_two_ranks_learn_from_the_groups_of_one_process(batches: int, tmp_path: Path) -> None:
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    said = [fit(alone, batches), fit(ranks, batches, "strategy=ddp", "trainer.devices=2")]
    for version in (0, 2):
        one, two = recorded(alone, version), recorded(ranks, version)
        assert len(one) == 16
        for name in ("prompt_index", "sample", "token_ids", "reward"):
            assert [row[name] for row in two] == [row[name] for row in one]
        assert [row["advantage"] for row in two] == pytest.approx([row["advantage"] for row in one])
    for one_epoch, two_epoch in zip(logged(alone), logged(ranks), strict=True):
        for name in ("generation_batches", "refilled_groups", "responses", "equal_groups", "accuracy"):
            assert two_epoch[f"rollout/{name}"] == one_epoch[f"rollout/{name}"], name
        assert two_epoch["reward/shaped"] == pytest.approx(one_epoch["reward/shaped"])
        assert two_epoch["reward/shaped"] < two_epoch["reward/mean"] - 0.1
    first, other = logged(alone)[0], logged(ranks)[0]
    assert first["rollout/refilled_groups"] > 0
    for name in ("policy/loss/surrogate", "policy/grad_norm"):
        assert other[name] == pytest.approx(first[name], rel=2e-5, abs=2e-8), name
    assert widest_difference(alone, ranks) < 2e-4
    # With two batches the first phase stays short of a group, and only one of the ranks says so.
    warnings = [text.count(WARNING) for text in said]
    assert warnings[0] == warnings[1]
    assert (warnings[0] > 0) == (batches == 2)
