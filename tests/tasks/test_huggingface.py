from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rlvr_lightning.errors import DataError, MissingDependencyError
from rlvr_lightning.tasks.huggingface import HuggingFaceTask


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 10), ("test", 3)):
        rows = ({"question": f"{split} {i}", "answer": f"work\n#### {i}", "id": i} for i in range(count))
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(data)


def test_splits_of_a_local_folder(folder: str) -> None:
    task = HuggingFaceTask(
        folder, held_out_split="test", problem_field="question", answer_pattern=r"####\s*(.+)$", held_out=2, limit=4
    )
    assert [problem.answer for problem in task.train()] == ["0", "1", "2", "3"]
    assert [problem.messages[0]["content"] for problem in task.held_out()] == ["test 0", "test 1"]
    assert [problem.id for problem in task.held_out()] == ["0", "1"]


def test_held_out_rows_of_one_split(folder: str) -> None:
    first, same = (HuggingFaceTask(folder, problem_field="question", held_out=3, seed=1) for _ in range(2))
    assert first.held_out() == same.held_out()
    ids = [problem.id for problem in (*first.train(), *first.held_out())]
    assert (len(first.train()), len(first.held_out()), sorted(ids)) == (7, 3, [str(i) for i in range(10)])


def test_missing_field_names_the_row(folder: str) -> None:
    with pytest.raises(DataError, match=r"\(train\), row 1: field 'problem' is missing; the row has question, answer"):
        HuggingFaceTask(folder)


def test_unknown_split(folder: str) -> None:
    with pytest.raises(DataError, match=r"\(dev\) cannot be loaded: ") as caught:
        HuggingFaceTask(folder, split="dev", problem_field="question")
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"nowhere \(train\) cannot be loaded: "):
        HuggingFaceTask(str(tmp_path / "nowhere"))


def test_without_datasets_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlvr-lightning\[datasets\]'"):
        HuggingFaceTask("openai/gsm8k", name="main")


def test_training_rows_are_screened_as_those_of_files_are(folder: str, tmp_path: Path) -> None:
    (tmp_path / "further.jsonl").write_text('{"question": "train 3"}\n')
    (tmp_path / "rates.jsonl").write_text("".join(f'{{"id": "{i}", "correct": [{i % 2}]}}\n' for i in range(8)))
    fields = {
        "problem_field": "question",
        "held_out_split": "test",
        "evaluation_paths": [str(tmp_path / "further.jsonl")],
    }
    task = HuggingFaceTask(folder, **fields)  # type: ignore[arg-type]
    assert [hit.train.id for hit in task.hygiene.overlap.hits] == ["3"]
    assert len(task.train()) == 10
    screened = HuggingFaceTask(
        folder,
        **fields,  # type: ignore[arg-type]
        decontaminate=True,
        difficulty=[1.0, 1.0],
        solve_rates=str(tmp_path / "rates.jsonl"),
    )
    assert [problem.id for problem in screened.train()] == ["1", "5", "7"]
