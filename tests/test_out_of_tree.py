"""Law 3: a method from outside the repository is one Python file and one yaml."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import SMALL

PARTITIONER = '''
import torch
from rlvr_lightning import Step, TokenPartitioner, TokenStats
from rlvr_lightning.errors import ConfigError


class Halves(TokenPartitioner):
    """The first tokens of each response, and the rest."""

    def __init__(self, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"Halves.share must be in (0, 1); got {share}")
        self.share = share

    @property
    def parts(self) -> tuple[str, ...]:
        return ("early", "late")

    def __call__(self, stats: TokenStats, step: Step) -> torch.Tensor:
        place = stats.loss_mask.cumsum(-1)
        return (place > self.share * stats.loss_mask.sum(-1, keepdim=True)).long()
'''
YAML = "# Two halves.\n_target_: halves.Halves\nshare: 0.25\n"
EXPERIMENT = """# @package _global_
defaults:
  - override /partitioner: halves

name: mine
constraint:
  clip_low: {early: 0.1, late: 0.3}
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "halves.py").write_text(PARTITIONER)
    for group, name, text in (("partitioner", "halves", YAML), ("experiment", "mine", EXPERIMENT)):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    return tmp_path


def run(outside: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlvr_lightning", "fit", "conf=mine", *SMALL, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(outside)}
    return subprocess.run(
        [*command, "--config-dir", str(outside / "conf")],
        cwd=outside,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_trains_like_any_other(outside: Path) -> None:
    done = run(outside, "output_dir=run")
    assert done.returncode == 0, done.stderr
    with (outside / "run" / "logs" / "version_0" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["policy/share/early"]]
    assert len(rows) == 2
    for row in rows:
        # floor(length / 4) of 15 to 30 tokens
        assert 0.2 < float(row["policy/share/early"]) < 0.25
        assert float(row["policy/entropy/late"]) > 0


def test_its_mistakes_are_told_like_any_others(outside: Path) -> None:
    done = run(outside, "partitioner.share=2")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: Halves.share must be in (0, 1); got 2"
    assert not (outside / "outputs").exists()
