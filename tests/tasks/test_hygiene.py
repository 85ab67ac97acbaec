"""Which training problems stay: those not evaluated on, those of a measured difficulty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training import SMALL

from rlvr_lightning.cli.main import main
from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.tasks.jsonl import JsonlTask
from rlvr_lightning.tasks.rows import RowFormat
from rlvr_lightning.types import Problem

LONG = "a farmer sells seven apples and nine pears on the first day of the market in town"
TEMPLATE = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
TRAIN = [
    {"id": "copy", "problem": "What is 3 + 4?", "answer": 7},
    {"id": "part", "problem": f"On Monday {LONG}. How many?", "answer": 16},
    {"id": "other", "problem": "What is 3 - 4?", "answer": -1},
    {"id": "file", "problem": "How many letters has this?", "answer": 5},
    {"id": "own", "problem": "How many digits has 1000?", "answer": 4},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    held_out = [
        {"id": "h0", "problem": "How long is a minute?", "answer": 60},
        {"id": "h1", "problem": "what is 3+4", "answer": 7},
        {"id": "h2", "problem": LONG, "answer": 16},
    ]
    further = [{"problem": "How many letters has this", "answer": 5}]
    return {
        "path": write(tmp_path / "train.jsonl", TRAIN),
        "held_out_path": write(tmp_path / "held_out.jsonl", held_out),
        "evaluation_paths": [write(tmp_path / "further.jsonl", further)],
        # Only the first is validated on; the whole file counts.
        "held_out": 1,
        "template": TEMPLATE,
    }


def ids(task: JsonlTask) -> list[str]:
    return [problem.id for problem in task.train()]


def test_what_is_asked_is_compared_and_not_the_template(files: dict[str, Any]) -> None:
    kept = JsonlTask(**files)
    assert ids(kept) == ["copy", "part", "other", "file", "own"]
    hits = kept.hygiene.overlap.hits
    assert [(hit.train.id, hit.kind) for hit in hits] == [("copy", "exact"), ("part", "13-gram"), ("file", "exact")]
    assert kept.hygiene.lines == (
        "overlap of 5 training and 4 evaluation prompts: 2 exact, 1 by 13 words in a row "
        "(kept: task.decontaminate=true drops them)",
    )
    rows = [json.loads(line) for line in kept.hygiene.examples().splitlines()]
    assert rows[1] == {
        "kind": "13-gram",
        "train_id": "part",
        "evaluation_id": "h2",
        "shared": " ".join(LONG.split()[:13]),
        "train": TRAIN[1]["problem"],
        "evaluation": LONG,
    }
    assert rows[2]["evaluation_id"] == f"{files['evaluation_paths'][0]}, line 1"


def test_decontaminate_drops_them(files: dict[str, Any]) -> None:
    task = JsonlTask(**files, decontaminate=True)
    assert ids(task) == ["other", "own"]
    assert task.hygiene.lines[0].endswith("2 exact, 1 by 13 words in a row (dropped)")
    assert [problem.id for problem in task.held_out()] == ["h0"]
    # At most so many of those that stay.
    assert ids(JsonlTask(**files, decontaminate=True, limit=1)) == ["other"]
    assert ids(JsonlTask(**{**files, "evaluation_paths": []}, decontaminate=True)) == ["other", "file", "own"]


def test_held_out_rows_of_the_same_file_count(tmp_path: Path) -> None:
    rows = [{"id": str(i), "problem": "Twice the same?" if i < 19 else "Only once?", "answer": 1} for i in range(20)]
    task = JsonlTask(write(tmp_path / "a.jsonl", rows), held_out=5, decontaminate=True)
    assert ids(task) == ["19"]
    clean = [{"id": str(i), "problem": f"{i}?", "answer": 1} for i in range(20)]
    task = JsonlTask(write(tmp_path / "b.jsonl", clean), held_out=5)
    assert task.hygiene.lines == ("no overlap of 15 training and 5 evaluation prompts",)


@pytest.mark.parametrize("template", ["{problem}", TEMPLATE, "Q: {problem}\n{problem}!", "{problem}{problem}{problem}"])
def test_a_question_is_found_within_its_template(template: str) -> None:
    question = r"Let {problem} be $\frac{1}{2}$."
    problem = RowFormat(template=template, system="Be brief.").problem({"problem": question, "answer": "1"}, "here")
    assert RowFormat(template=template).question(problem) == question


def rates(tmp_path: Path) -> str:
    """As `predict` writes them: own 2 of 2, other 1 of 2, copy 0 of 1 that was judged, part none."""
    verdicts: dict[str, list[bool | None]] = {
        "own": [True, True],
        "other": [True, False],
        "copy": [None, False],
        "part": [None, None],
        "nobody": [True],
    }
    rows = [{"problem_id": name, "correct": correct} for name, held in verdicts.items() for correct in held]
    return write(tmp_path / "predictions.jsonl", rows)


@pytest.mark.parametrize(
    ("difficulty", "kept"),
    [
        ([0.0, 1.0], ["copy", "other", "own"]),
        ([0, 0.5], ["copy", "other"]),
        ([0.5, 0.99], ["other"]),
        ([1.0, 1.0], ["own"]),
    ],
)
def test_difficulty_is_the_measured_solve_rate(
    files: dict[str, Any], tmp_path: Path, difficulty: list[float], kept: list[str]
) -> None:
    task = JsonlTask(**files, difficulty=difficulty, solve_rates=rates(tmp_path))
    assert ids(task) == kept
    assert task.hygiene.lines[1] == (
        f"difficulty: {len(kept)} of 5 training problems have a solve rate from {difficulty[0]} to {difficulty[1]}; "
        "2 without a measured one are left out"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficulty": [0.1, 0.9]}, r"task\.difficulty=\[LOW,HIGH\] needs task\.solve_rates=FILE"),
        ({"solve_rates": "x"}, r"task\.difficulty=\[LOW,HIGH\] needs task\.solve_rates=FILE"),
        ({"difficulty": [0.9, 0.1], "solve_rates": "x"}, r"0 <= LOW <= HIGH <= 1; got \[0\.9, 0\.1\]"),
        ({"difficulty": [0.1, 1.1], "solve_rates": "x"}, r"got \[0\.1, 1\.1\]"),
        ({"difficulty": [0.1], "solve_rates": "x"}, r"got \[0\.1\]"),
        ({"difficulty": [False, True], "solve_rates": "x"}, r"got \[False, True\]"),
        ({"difficulty": ["low", "high"], "solve_rates": "x"}, r"got \['low', 'high'\]"),
        ({"decontaminate": "yes"}, r"task\.decontaminate must be true or false; got 'yes'"),
        ({"evaluation_paths": "x.jsonl"}, r"task\.evaluation_paths must be a list: \[x\.jsonl\]"),
    ],
)
def test_settings_out_of_range(files: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonlTask(**{**files, **settings})


def test_nothing_left_to_learn_from_is_refused(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leave nothing to learn from: overlap of 5 .* difficulty: 0 of 5"):
        JsonlTask(**files, difficulty=[0.6, 0.9], solve_rates=rates(tmp_path))
    path = write(tmp_path / "others.jsonl", [{"id": "x", "correct": [True]}])
    with pytest.raises(DataError, match=r"others\.jsonl has a verdict on none of the 5 training problems"):
        JsonlTask(**files, difficulty=[0.0, 1.0], solve_rates=path)


def test_a_run_says_so_before_it_begins_and_keeps_the_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": str(i), "problem": f"{i}+1=", "answer": i + 1} for i in range(1, 20)]
    path = write(tmp_path / "sums.jsonl", rows)
    small = [item for item in SMALL if not item.startswith("task.")]
    task = ["task=jsonl", f"task.path={path}", f"task.held_out_path={path}", "task.held_out=2", "verifier=exact"]
    common = [*small, *task, "task.template='{problem}'", "trainer.max_epochs=0"]
    assert main(("fit", *common, f"output_dir={tmp_path / 'run'}")) == 0
    expected = (
        "overlap of 19 training and 19 evaluation prompts: 19 exact, 0 by 13 words in a row "
        f"(kept: task.decontaminate=true drops them): {tmp_path / 'run' / 'overlap.jsonl'}"
    )
    # The screen breaks it into lines.
    assert "".join(capsys.readouterr().out.split()).count("".join(expected.split())) == 1
    kept = [json.loads(line) for line in (tmp_path / "run" / "overlap.jsonl").read_text().splitlines()]
    assert [row["train_id"] for row in kept] == [row["id"] for row in rows]
    assert main(("fit", *common, "task.decontaminate=true", f"output_dir={tmp_path / 'other'}")) == 2


def test_problems_of_any_form_have_a_question() -> None:
    problem = Problem("p", ({"role": "user", "content": "Q: x"},), "1")
    assert RowFormat(template="Q: {problem}").question(problem) == "x"
