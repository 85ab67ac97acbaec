from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, DataError, MissingDependencyError
from rlvr_lightning.tasks.jsonl import JsonlTask
from rlvr_lightning.tasks.rows import RowFormat

ROWS = [{"id": f"r{i}", "problem": f"What is {i}+{i}?", "answer": 2 * i, "level": i % 3} for i in range(20)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_problems(tmp_path: Path, name: str) -> None:
    path = (write_parquet if name.endswith("parquet") else write)(tmp_path / name, ROWS)
    task = JsonlTask(path, held_out=4, system="Be brief.", template=r"{problem} Use \boxed{}.")
    problems = {problem.id: problem for problem in (*task.train(), *task.held_out())}
    assert (len(task.train()), len(task.held_out()), len(problems)) == (16, 4, 20)
    problem = problems["r7"]
    assert problem.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": r"What is 7+7? Use \boxed{}."},
    )
    assert problem.answer == "14"
    assert problem.meta == {"level": 1}


def test_latex_braces_survive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": r"Find $\frac{1}{x}$ {problem}", "answer": "1"}])
    (problem,) = JsonlTask(path, held_out=0).train()
    assert problem.messages[0]["content"] == r"Find $\frac{1}{x}$ {problem}"
    assert problem.id == f"{path}, line 1"


def test_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    first, same, other = (JsonlTask(path, held_out=5, seed=seed) for seed in (0, 0, 1))
    assert first.held_out() == same.held_out()
    assert first.train() == same.train()
    assert first.held_out() != other.held_out()
    for task in (first, other):
        ids = [problem.id for problem in (*task.train(), *task.held_out())]
        assert sorted(ids) == sorted(row["id"] for row in ROWS)


def test_limit_leaves_the_held_out_rows_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    full, short = JsonlTask(path, held_out=5), JsonlTask(path, held_out=5, limit=3)
    assert short.held_out() == full.held_out()
    assert short.train() == full.train()[:3]


def test_held_out_file_of_its_own(tmp_path: Path) -> None:
    path, apart = write(tmp_path / "a.jsonl", ROWS[:15]), write(tmp_path / "b.jsonl", ROWS[15:])
    task = JsonlTask(path, held_out_path=apart, held_out=3)
    assert len(task.train()) == 15
    assert [problem.id for problem in task.held_out()] == ["r15", "r16", "r17"]


def test_answer_pattern(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "solution": "48/2 = 24\n#### 72"}])
    fields = {"problem_field": "question", "answer_field": "solution", "held_out": 0}
    (problem,) = JsonlTask(path, answer_pattern=r"####\s*(.+)$", **fields).train()
    assert problem.answer == "72"
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: task\.answer_pattern finds no answer in '48/2"):
        JsonlTask(path, answer_pattern=r"@(.+)$", **fields)


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"problem": "p", "answer": "1"}\n   \n{"problem": "q"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 4: field 'answer' is missing; the row has problem"):
        JsonlTask(str(path), held_out=0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"problem": "p", "answer"', r"line 2: no JSON \(Expecting ':' delimiter at column 26\)"),
        ("[1, 2]", "line 2: a row must be a JSON object; got list"),
        ('{"question": "p", "answer": "1"}', "line 2: field 'problem' is missing; the row has question, answer"),
        ('{"problem": " ", "answer": "1"}', "line 2: field 'problem' is empty; the row has problem, answer"),
        ('{"problem": "p", "answer": null}', "line 2: field 'answer' is empty"),
        ('{"problem": "p", "answer": true}', "line 2: field 'answer' is empty"),
        ('{"problem": "p", "answer": "2", "id": "x"}', r"line 2: id 'x' stands at .*a\.jsonl, line 1 already"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "p", "answer": "1", "id": "x"}\n' + second + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}") as caught:
        JsonlTask(str(path), held_out=0)
    assert "\n" not in str(caught.value)


def test_bad_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"problem": "p", "answer": "1"}\n{"problem": "\xff", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no UTF-8"):
        JsonlTask(str(path), held_out=0)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k_train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"gsm8k_trian\.jsonl does not exist; did you mean .*gsm8k_train\.jsonl\?"):
        JsonlTask(str(tmp_path / "gsm8k_trian.jsonl"))
    with pytest.raises(DataError, match=r"b\.jsonl does not exist$"):
        JsonlTask(str(tmp_path / "nowhere" / "b.jsonl"))


@pytest.mark.parametrize("setting", ["path", "held_out_path", "evaluation_paths", "solve_rates"])
def test_a_missing_file_is_told_with_the_setting_that_names_it(setting: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    none = str(tmp_path / "none.jsonl")
    screened = {"evaluation_paths": {"decontaminate": True}, "solve_rates": {"difficulty": [0, 1]}}.get(setting, {})
    named = {setting: [none] if setting == "evaluation_paths" else none}
    with pytest.raises(DataError, match=f"^task.{setting}={none} does not exist"):
        JsonlTask(**{"path": str(tmp_path / "a.jsonl"), "held_out": 1, **screened, **named})  # type: ignore[arg-type]


def test_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,answer\n")
    with pytest.raises(DataError, match=r"task\.path=.*a\.csv is of no known kind: there are \.jsonl, \.jsonl\.gz, "):
        JsonlTask(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"a\.jsonl has no rows"):
        JsonlTask(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "cut",
    [b"not gzip", gzip.compress(b'{"problem": "p", "answer": "1"}\n' * 50, mtime=0)[:30]],
    ids=["not gzip", "cut off"],
)
def test_broken_gzip(tmp_path: Path, cut: bytes) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(cut)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read"):
        JsonlTask(str(tmp_path / "a.jsonl.gz"))


def test_broken_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"a\.parquet is no Parquet file") as caught:
        JsonlTask(str(tmp_path / "a.parquet"))
    assert "\n" not in str(caught.value)


def test_bad_parquet_row_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*ROWS[:2], {**ROWS[2], "answer": None}])
    with pytest.raises(DataError, match=r"a\.parquet, row 3: field 'answer' is empty"):
        JsonlTask(path, held_out=0)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlvr-lightning\[datasets\]'"):
        JsonlTask(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"held_out": 20}, r"task\.held_out=20 leaves nothing to learn from: there are 20 rows"),
        ({"held_out": -1}, r"task\.held_out must be at least 0"),
        ({"held_out": 1, "limit": 0}, r"task\.limit at least 1; got 1 and 0"),
        ({"template": "no place"}, r"task\.template must contain \{problem\}; got 'no place'"),
        ({"answer_pattern": "("}, r"task\.answer_pattern is no regular expression"),
        ({"answer_pattern": "x"}, r"task\.answer_pattern needs a group"),
    ],
)
def test_setting_out_of_range(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match=message):
        JsonlTask(path, **setting)


GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl.gz"


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is absent")
def test_gsm8k() -> None:
    task = JsonlTask(str(GSM8K))
    assert (len(task.train()), len(task.held_out())) == (7473 - 64, 64)
    first = next(problem for problem in (*task.train(), *task.held_out()) if problem.id == "gsm8k-train-0000")
    assert first.answer == "72"
    assert set(first.meta) == {"solution", "source"}


def test_rows_with_tests_instead_of_an_answer_keep_them_and_the_question(tmp_path: Path) -> None:
    rows = [{"id": "a", "problem": "def f():\n", "tests": {"type": "asserts", "asserts": ["assert f() == 1"]}}]
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = JsonlTask(str(tmp_path / "code.jsonl"), answer_field=None, template="Go on: {problem}", held_out=0)
    (problem,) = task.train()
    assert (problem.answer, problem.messages[0]["content"]) == ("", "Go on: def f():")
    assert problem.meta == {"tests": rows[0]["tests"], "problem": "def f():"}


def test_the_template_shows_other_fields_of_the_row(tmp_path: Path) -> None:
    row = {
        "problem": r"Sort {row.level} $\\frac{1}{x}$.",
        "tests": {"asserts": ["assert f(1) == 2", "no"]},
        "level": 3,
        "hint": "",
    }
    path = write(tmp_path / "a.jsonl", [row])
    template = "Level {row.level}: {problem}{row.hint} Pass {row.tests.asserts.0} in \\boxed{roof}. {problem}"
    task = JsonlTask(path, held_out=0, answer_field=None, template=template)
    (problem,) = task.train()
    question = row["problem"]
    assert problem.messages[0]["content"] == (
        f"Level 3: {question} Pass assert f(1) == 2 in \\boxed{{roof}}. {question}"
    )
    assert RowFormat(answer_field=None, template=template).question(problem) == question


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (
            "row.hint",
            r"a\.jsonl, line 1: the template shows \{row\.hint\}, and the row has no 'hint' there; it has problem, tests",
        ),
        ("row.tests.asserts.2", "the row has no '2' there"),
        ("row.tests.asserts", "which is neither a text nor a number"),
    ],
)
def test_what_the_template_shows_must_be_there(tmp_path: Path, shown: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"problem": "p", "tests": {"asserts": ["a", "b"]}}])
    with pytest.raises(DataError, match=message):
        JsonlTask(path, held_out=0, answer_field=None, template=f"{{problem}} {{{shown}}}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{problem} {row.answer}",
            r"template: \{row\.answer\} cannot be shown: \{problem\} is the question, the answer is not",
        ),
        ("{problem} {row.problem}", r"\{row\.problem\} cannot be shown"),
        ("{problem} {row.id.x}", r"\{row\.id\.x\} cannot be shown"),
        ("{problem} {row.starter-code}", "a field of the row is shown by"),
        ("{problem} {rows.hint}", "a field of the row is shown by"),
    ],
)
def test_what_the_template_cannot_show(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonlTask(write(tmp_path / "a.jsonl", ROWS), template=template)
