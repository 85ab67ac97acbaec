"""Law 3: a method from outside the repository is one Python file and one yaml."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from training import SMALL

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"
EXPERIMENT = """# @package _global_
defaults:
  - override /partitioner: halves

name: mine
constraint:
  clip_low: {early: 0.1, late: 0.3}
"""


MINE = ("fit", "--config-dir", "myconf", "conf=mine")


def blocks(language: str) -> list[str]:
    """The document's code, block by block."""
    pairs = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for kind, code in pairs if kind == language]


def documented_commands() -> list[list[str]]:
    """The document's command lines, without `python -m rlvr_lightning`."""
    found = [block for block in blocks("") if block.startswith("python -m rlvr_lightning fit")]
    return [shlex.split(block.replace("\\\n", " "))[3:] for block in found]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    for code in (*blocks("python"), *blocks("yaml")):
        # Each begins with its own name.
        file = tmp_path / re.match(r"# ([\w/.]+)", code).group(1)  # type: ignore[union-attr]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    experiments = tmp_path / "myconf" / "experiment"
    experiments.mkdir()
    (experiments / "mine.yaml").write_text(EXPERIMENT)
    return tmp_path


def run(outside: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlvr_lightning", *arguments, *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(outside)}
    return subprocess.run(
        command,
        cwd=outside,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_trains_like_any_other(outside: Path) -> None:
    done = run(outside, *MINE, "output_dir=run")
    assert done.returncode == 0, done.stderr
    with (outside / "run" / "logs" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["policy/share/early"]]
    assert len(rows) == 2
    for row in rows:
        # floor(length / 4) of 15 to 30 tokens
        assert 0.2 < float(row["policy/share/early"]) < 0.25
        assert float(row["policy/entropy/late"]) > 0


def test_its_mistakes_are_told_like_any_others(outside: Path) -> None:
    done = run(outside, *MINE, "partitioner.share=2")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: Halves.share must be in (0, 1); got 2"
    assert not (outside / "outputs").exists()


def test_the_documents_commands_train(outside: Path) -> None:
    commands = documented_commands()
    assert len(commands) == 2
    for number, command in enumerate(commands):
        done = run(outside, *command, "rollout.prompts_per_step=4", f"output_dir=documented_{number}")
        assert done.returncode == 0, done.stderr
    with (outside / "documented_1" / "logs" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["policy/loss/lp_reg"]]
    assert len(rows) == 2
    driven = [float(row["controller/constraint.width"]) for row in rows]
    assert driven[0] != driven[1]
    assert all(0.1 <= width <= 1 for width in driven)
    assert float(rows[0]["policy/share/early"]) > 0.2
