"""Solve rates through a run: what is in the file, after resumes and kills too, and what a task reads from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training import SMALL, fit, recorded

from rlvr_lightning.cli.main import main
from rlvr_lightning.rollout.solve_rates import FILE, add_phase
from rlvr_lightning.tasks.arithmetic import Arithmetic
from rlvr_lightning.tasks.jsonl import JsonlTask
from rlvr_lightning.tasks.outcomes import read_outcomes
from rlvr_lightning.types import Outcomes


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def group(name: str, *correct: bool | None) -> Outcomes:
    return Outcomes(name, correct, tuple(None if one is None else float(one) for one in correct))


def test_phases_follow_each_other_and_add_up(tmp_path: Path) -> None:
    file = tmp_path / "run" / FILE
    add_phase(file, 0, [group("é", True, False), group("b", None, None)])
    add_phase(file, 4, [group("é", True, True)])
    assert lines(file) == [
        {"version": 0, "id": "é", "correct": [True, False], "rewards": [1.0, 0.0]},
        {"version": 0, "id": "b", "correct": [None, None], "rewards": [None, None]},
        {"version": 4, "id": "é", "correct": [True, True], "rewards": [1.0, 1.0]},
    ]
    found = {problem.id: problem for problem in read_outcomes(file)}
    assert found["é"].correct == (True, False, True, True)
    assert (found["é"].solve_rate, found["b"].solve_rate) == (0.75, None)


@pytest.mark.parametrize(("version", "left"), [(0, []), (2, [0]), (3, [0, 2]), (9, [0, 2, 4, 6])])
def test_a_phase_drawn_again_replaces_what_came_since(tmp_path: Path, version: int, left: list[int]) -> None:
    file = tmp_path / FILE
    for before in (0, 2, 4, 6):
        add_phase(file, before, [group("a", True), group("b", False)])
    file.write_bytes(file.read_bytes() + b'{"version": 6, "id": "cut')
    add_phase(file, version, [group("c", True)])
    versions = [row["version"] for row in lines(file)]
    assert versions == [*(one for before in left for one in (before, before)), version]


def test_a_run_keeps_every_group_it_drew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(run, "rollout.drop_equal_groups=true", "rollout.generation_batches=3", "rollout.group_size=2")
    held = lines(run / FILE)
    drawn: dict[tuple[int, str], list[bool]] = {}
    for version in (0, 1):
        for record in recorded(run, version):
            drawn.setdefault((version, record["id"]), []).append(record["correct"])
    of_file = {(row["version"], row["id"]): row["correct"] for row in held}
    assert {key: of_file[key] for key in drawn} == drawn
    # Of the groups that were dropped for equal rewards nothing stands in the rollout files.
    others = [correct for key, correct in of_file.items() if key not in drawn]
    assert any(len(set(correct)) == 1 for correct in others)
    assert len(held) == len(of_file) > len(drawn)


def test_a_resumed_run_has_the_file_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    fit(whole, "trainer.max_epochs=3")
    fit(run)
    # What a session left that was killed after its last checkpoint.
    add_phase(run / FILE, 2, [group("drawn for nothing", True)])
    (run / FILE).write_bytes((run / FILE).read_bytes() + b'{"version": 2')
    assert main(("fit", f"resume={run}", "trainer.max_epochs=3")) == 0
    assert (run / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert [row["version"] for row in lines(run / FILE)] == [0] * 8 + [1] * 8 + [2] * 8


def test_a_task_reads_them(tmp_path: Path) -> None:
    rows = [
        {"id": problem.id, "problem": problem.messages[0]["content"], "answer": problem.answer}
        for problem in Arithmetic(num_held_out=12).held_out()
    ]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    task = ("task=jsonl", f"task.path={path}", "task.held_out=4", "verifier=exact", "task.template='{problem}'")
    small = [item for item in SMALL if not item.startswith("task.")]
    assert main(("fit", *small, *task, f"output_dir={run}")) == 0
    rates = {problem.id: problem.solve_rate for problem in read_outcomes(run / FILE)}
    # Eight problems to learn from, each drawn in both phases.
    assert len(rates) == 8
    assert all(len(problem.correct) == 8 for problem in read_outcomes(run / FILE))
    known = sorted(rate for rate in rates.values() if rate is not None)
    assert known[0] < known[-1]
    hardest = JsonlTask(str(path), held_out=4, difficulty=(0.0, known[3]), solve_rates=str(run / FILE))
    expected = {name for name, rate in rates.items() if rate is not None and rate <= known[3]}
    assert 4 <= len(expected) < 8
    assert {problem.id for problem in hardest.train()} == expected


@pytest.mark.slow
def test_two_ranks_keep_what_one_does(tmp_path: Path) -> None:
    for name, ranks in (("one", ()), ("two", ("strategy=ddp", "trainer.devices=2"))):
        arguments = ("fit", *SMALL, *ranks, "trainer.max_epochs=1", f"output_dir={tmp_path / name}")
        subprocess.run([sys.executable, "-m", "rlvr_lightning", *arguments], check=True, timeout=300)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
