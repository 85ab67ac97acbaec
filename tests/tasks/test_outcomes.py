"""Files of verdicts: a problem a line, or a response a line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.errors import DataError
from rlvr_lightning.tasks.outcomes import outcome_lines, read_outcomes
from rlvr_lightning.types import Outcomes

PROBLEMS = [
    Outcomes("a", (True, None, False), (1.0, None, 0.25), "text 1"),
    Outcomes("ü", (False,), (0.0,)),
    Outcomes("c", (), (2.0, -1.0)),
    Outcomes("d", (True, False), ()),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(outcome_lines(PROBLEMS))
    assert read_outcomes(path) == PROBLEMS
    assert json.loads(path.read_text().splitlines()[1]) == {"id": "ü", "correct": [False], "rewards": [0.0]}


def test_responses_are_gathered_by_problem(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl.gz"
    rows: list[dict[str, Any]] = [
        {"problem_id": "a", "correct": True, "reward": 1.0, "sample": 0},
        {"problem_id": "b", "correct": False, "reward": 0.5, "cluster": 7},
        {"problem_id": "a", "correct": None, "reward": None},
        {"problem_id": "b", "correct": True, "reward": 1, "cluster": 7},
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert read_outcomes(path) == [
        Outcomes("a", (True, None), (1.0, None)),
        Outcomes("b", (False, True), (0.5, 1.0), "7"),
    ]


def test_a_runs_own_records_are_a_response_a_line(tmp_path: Path) -> None:
    path = tmp_path / "version_00000000.rank_0_of_1.jsonl"
    rows = [
        {"id": "a", "sample": 0, "correct": True, "reward": 1.0, "response": "1"},
        {"id": "b", "sample": 0, "correct": False, "reward": 0.0},
        {"id": "a", "sample": 1, "correct": None, "reward": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_outcomes(path) == [Outcomes("a", (True, None), (1.0, None)), Outcomes("b", (False,), (0.0,))]


def test_a_solve_rate_is_of_the_responses_with_a_verdict() -> None:
    rates = [problem.solve_rate for problem in PROBLEMS]
    assert rates == [0.5, 0.0, None, 0.5]
    assert Outcomes("x", (None, None)).solve_rate is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"correct": [True]}, "line 2: the row must have `id` (a problem a line) or `problem_id` (a response a line)"),
        ({"id": "b"}, "line 2: `correct` or `rewards` must be a list with a value for each response"),
        ({"id": "b", "correct": True}, "line 2: `correct` or `rewards` must be a list"),
        ({"id": "b", "correct": ["yes"]}, "line 2: a verdict is true, false or null (none was given); got 'yes'"),
        ({"id": "b", "correct": [2]}, "line 2: a verdict is true, false or null (none was given); got 2"),
        ({"id": "b", "rewards": ["1"]}, "line 2: a reward is a number or null (none was given); got '1'"),
        ({"id": "b", "rewards": [True]}, "line 2: a reward is a number or null (none was given); got True"),
        ({"problem_id": "b", "correct": "yes"}, "line 2: a verdict is true, false or null (none was given); got 'yes'"),
        ({"id": "a", "correct": [True]}, "line 2: problem a stands in this file already"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "correct": [1, 0]}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_outcomes(path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"a\.jsonl has no rows"):
        read_outcomes(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl does not exist"):
        read_outcomes(tmp_path / "b.jsonl")
