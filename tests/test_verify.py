"""The verb `verify`: any file of responses, judged row by row; real cases, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlvr_lightning.cli.main import file_named, main
from rlvr_lightning.cli.verify import read_case
from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.types import Problem

GATES = {"core": 0.99, "symbolic": 0.95, "extraction": 0.95, "robustness": 1.0}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_answer_gets_a_row_and_the_table_says_where_it_disagrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": "a", "response": "so #4", "answer": "4", "correct": True, "category": "sums"},
        {"id": "b", "response": "so #5", "gold": 4, "correct": True, "category": "sums"},
        {"id": "c", "response": "so 4", "gold": "4", "correct": False, "category": "other"},
        {"id": 7, "prediction": "#4", "gold": "4"},
        {"id": "a", "response": "so #5", "answer": "5"},
    ]
    out = tmp_path / "deep" / "out.jsonl"
    file = written(tmp_path / "some answers.jsonl", rows)
    assert main(("verify", str(file), "verifier=exact", f"output={out}")) == 0
    found = read(out)
    assert [(row["id"], row["verdict"], row["extracted"], row["reward"], row["error"]) for row in found] == [
        ("a", "correct", "4", 1.0, None),
        ("b", "wrong", "5", 0.0, None),
        ("c", "unparsable", None, 0.0, None),
        ("7", "correct", "4", 1.0, None),
        ("a", "correct", "5", 1.0, None),
    ]
    assert all(0 <= row["seconds"] < 10 for row in found)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    table = {cells[0]: cells[1:] for cells in lines if len(cells) == 10}
    assert table["sums"] == ["2", "1", "1", "0", "0", "0", "2", "1", "50.0%"]
    assert table["other"] == ["1", "0", "0", "1", "0", "0", "1", "0", "100.0%"]
    assert table["-"] == ["2", "2", "0", "0", "0", "0", "0", "0", "-"]
    assert table["all"] == ["5", "3", "1", "1", "0", "0", "3", "1", "66.7%"]


def test_disagreements_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"r{place}", "response": "#5", "answer": "4", "correct": True} for place in range(12)]
    assert main(("verify", str(written(tmp_path / "a.jsonl", rows)), "verifier=exact")) == 0
    shown = capsys.readouterr().out
    assert "r0: wrong, but the file says correct; extracted '5', gold '4'" in shown
    assert "r9:" in shown
    assert "r10:" not in shown
    assert "and 2 more" in shown


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"response": "4", "answer": "4"}, "line 3: it has neither id nor problem_id"),
        ({"id": "a", "answer": "4"}, "line 3: it has neither response nor prediction"),
        ({"id": "a", "response": None, "answer": "4"}, "line 3: it has neither response nor prediction"),
        ({"id": "a", "response": "4"}, "line 3: it has neither answer nor gold"),
        ({"id": "a", "response": ["4"], "answer": "4"}, "line 3: response must be a text; got ['4']"),
        ({"id": "a", "response": "4", "answer": True}, "line 3: answer must be a text or a number; got True"),
        ({"id": "a", "response": "4", "answer": "4", "correct": 1}, "line 3: correct must be true or false; got 1"),
        ({"id": "a", "response": "4", "answer": "4", "extract": "box"}, "line 3: extract must be auto, boxed"),
        ("[1, 2]", "line 3: a row must be a JSON object; got list"),
        ('{"id": "a", ', "line 3: no JSON ("),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, told: str
) -> None:
    fine = {"id": "a", "response": "#4", "answer": "4"}
    file = written(tmp_path / "rows.jsonl", [fine, "", row, fine])
    assert main(("verify", str(file), "verifier=exact", f"output={tmp_path / 'out.jsonl'}")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}, {told}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_what_is_asked_for_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("verify", "verifier=exact")) == 2
    assert capsys.readouterr().err == "error: file must be given: file=...\n"
    assert main(("verify", str(tmp_path / "no.jsonl"), "verifier=exact")) == 2
    assert f"{tmp_path / 'no.jsonl'} does not exist" in capsys.readouterr().err
    assert main(("verify", str(tmp_path / "no.jsonl"), "verifier=exakt")) == 2
    assert "there is no verifier=exakt; did you mean exact?" in capsys.readouterr().err


def test_a_row_becomes_a_problem_with_everything_else_in_its_meta() -> None:
    row = {
        "id": "a",
        "response": "x",
        "answer": 2.5,
        "problem": "why?",
        "tests": ["t"],
        "tier": "core",
        "correct": True,
    }
    case = read_case(row, "here")
    meta = {"problem": "why?", "tests": ["t"], "tier": "core", "correct": True}
    assert case.problem == Problem("a", ({"role": "user", "content": "why?"},), "2.5", meta)
    assert (case.response, case.label, case.groups) == ("x", True, {"tier": "core"})
    coded = read_case({"id": "a", "response": "def f(): ...", "tests": []}, "here", gold_needed=False)
    assert (coded.problem.answer, coded.problem.meta) == ("", {"tests": []})


@pytest.mark.parametrize(
    ("row", "extract"),
    [
        ({"prediction": "5"}, "free"),
        ({"prediction": "5", "kind": "pair"}, "free"),
        ({"prediction": "5", "kind": "response"}, None),
        ({"prediction": "5", "extract": "boxed"}, "boxed"),
        ({"response": "5"}, None),
        ({"response": "5", "extract": "gsm8k"}, "gsm8k"),
    ],
)
def test_where_the_answer_stands(row: dict[str, str], extract: str | None) -> None:
    assert read_case({"id": "a", "gold": "5", **row}, "here").problem.meta.get("extract") == extract


def test_the_file_is_the_argument_that_is_no_override() -> None:
    assert file_named(["--config-dir", "mine", "it's.jsonl", "verifier=math"]) == [
        "--config-dir",
        "mine",
        r"file='it\'s.jsonl'",
        "verifier=math",
    ]


def test_its_settings_of_grading_are_a_runs() -> None:
    own, run = OmegaConf.load(config_dir() / "verify.yaml").grading, compose([]).grading
    assert dict(own) == {name: run[name] for name in own}


def test_the_workers_and_their_time_are_the_settings(tmp_path: Path) -> None:
    (tmp_path / "conf" / "verifier").mkdir(parents=True)
    (tmp_path / "conf" / "verifier" / "scripted.yaml").write_text("_target_: verifiers.pooled.Scripted\n")
    rows = [{"id": "a", "response": response, "answer": "4"} for response in ("4", "sleep 600")]
    file, out = written(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    settings = ("verifier=scripted", "grading.workers=1", "grading.timeout_s=2", f"output={out}")
    assert main(("verify", str(file), "--config-dir", str(tmp_path / "conf"), *settings)) == 0
    assert [row["verdict"] for row in read(out)] == ["correct", "timeout"]


@pytest.mark.slow
def test_the_conformance_cases(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    file = shared_data / "verifier_cases.jsonl"
    assert main(("verify", str(file), "verifier=math", "verifier.timeout_s=30", f"output={out}")) == 0
    cases, found = read(file), read(out)
    assert [row["id"] for row in found] == [case["id"] for case in cases]
    for tier, least in GATES.items():
        pairs = [(case, row) for case, row in zip(cases, found, strict=True) if case["tier"] == tier]
        wrong = [
            (case["id"], row["verdict"])
            for case, row in pairs
            if row["verdict"] == "error" or (row["verdict"] == "correct") is not case["correct"]
        ]
        assert 1 - len(wrong) / len(pairs) >= least, (tier, wrong)


def code_rows(folder: Path) -> list[dict[str, Any]]:
    """A row of each layout with a right and a wrong response, in a fence and bare."""
    held = []
    for name in ("humaneval", "mbpp", "leetcode_test", "livecodebench_format_sample"):
        row = json.loads((folder / f"{name}.jsonl").read_text().splitlines()[0])
        code = row.pop("canonical_solution")
        for response in (f"So:\n```python\n{code}\n```", code):
            held.append({**row, "response": response, "correct": True})
        held.append({**row, "response": "```python\npass\n```", "correct": False})
        if name == "humaneval":
            held.append({**row, "response": f"```python\n{row['problem']}{code}\n```", "correct": True})
    return held


def test_programs_in_a_file_are_judged(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    rows = code_rows(shared_data)
    lost = {**rows[0], "response": "I do not know.", "correct": False}
    file, out = written(tmp_path / "programs.jsonl", [*rows, lost]), tmp_path / "out.jsonl"
    settings = "verifier.timeout_s={check: 20.0, asserts: 20.0, functional: 20.0, livecodebench: 20.0}"
    assert main(("verify", str(file), "verifier=code", settings, f"output={out}")) == 0
    found = read(out)
    assert [one["verdict"] == "correct" for one in found] == [*(row["correct"] for row in rows), False]
    assert found[-1]["verdict"] == "unparsable"
    assert "100.0%" in capsys.readouterr().out
