"""`compare`: files and folders of problems, and the interval of a difference between two real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import SMALL

from rlvr_lightning.cli.main import main
from rlvr_lightning.evaluation.statistics import as_markdown, compare_files
from rlvr_lightning.tasks.outcomes import outcome_lines
from rlvr_lightning.types import Outcomes

BEFORE = [Outcomes(f"p{i}", (i % 3 == 0, i % 2 == 0)) for i in range(30)]
AFTER = [Outcomes(f"p{i}", (i % 3 != 1, True)) for i in range(30)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, problems in (("before", BEFORE), ("after", AFTER)):
        folder = tmp_path / name
        (folder / "responses").mkdir(parents=True)
        for benchmark in ("aime24", f"only_{name}"):
            (folder / f"{benchmark}.jsonl").write_bytes(outcome_lines(problems))
        (folder / "summary.json").write_text("{}")
    (tmp_path / "before" / "gsm8k.jsonl").write_bytes(outcome_lines(BEFORE[:9]))
    (tmp_path / "after" / "gsm8k.jsonl").write_bytes(outcome_lines(AFTER[8::-1]))
    return tmp_path


def test_folders_are_compared_by_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = str(place / "before"), str(place / "after")
    assert main(("compare", before, after, f"output={place / 'compared'}")) == 0
    shown = capsys.readouterr().out
    found = [
        compare_files(place / "before" / f"{name}.jsonl", place / "after" / f"{name}.jsonl")
        for name in ("aime24", "gsm8k")
    ]
    for one in found:
        assert all(cell in shown for column, cell in one.cells().items() if column)
    assert found[0].value == pytest.approx(
        sum(sum(p.correct) for p in AFTER) / 60 - sum(sum(p.correct) for p in BEFORE) / 60
    )  # type: ignore[arg-type]
    assert "only_" not in shown
    held = json.loads((place / "compared" / "comparison.json").read_text())
    assert [one["name"] for one in held["results"]] == ["aime24", "gsm8k"]
    assert held["first"] == before
    assert (place / "compared" / "comparison.md").read_text().count("\n") == len(as_markdown(found).splitlines())


def test_two_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("compare", str(place / "before" / "gsm8k.jsonl"), str(place / "after" / "gsm8k.jsonl"))) == 0
    assert "gsm8k" in capsys.readouterr().out
    assert sorted(path.name for path in place.iterdir()) == ["after", "before"]


def test_rewards_instead_of_verdicts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, reward in (("a", 0.25), ("b", 0.75)):
        (place / f"{name}.jsonl").write_bytes(
            outcome_lines([Outcomes(f"p{i}", (True,), (reward + i / 100,)) for i in range(12)])
        )
    assert main(("compare", str(place / "a.jsonl"), str(place / "b.jsonl"), "of=rewards")) == 0
    assert "+0.5000" in capsys.readouterr().out
    assert main(("compare", str(place / "a.jsonl"), str(place / "b.jsonl"))) == 0
    assert "+0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("before",), "compare takes two files or folders"),
        (("before", "after", "before"), "compare takes two files or folders"),
        (("before", "after", "of=speed"), "compare takes two files or folders"),
        (("before", "after", "ouput=x"), "compare has no setting ouput; did you mean output?"),
        (("before", "after/aime24.jsonl"), "must both be files, or both folders of them"),
        (("before/responses", "after"), "have no file of problems in common: none and aime24.jsonl"),
        (("before/aime24.jsonl", "after/aime25.jsonl"), "after/aime25.jsonl does not exist; did you mean"),
        (("before/aime24.jsonl", "after/gsm8k.jsonl"), "a paired comparison needs the same problems: 30 and 9"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(
    place: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    assert main(("compare", *arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_checkpoints_of_a_run_differ_by_what_many_more_problems_say(tmp_path: Path) -> None:
    """Sixty problems, four responses each, before and after training; ten times as many stand for the truth."""
    run = tmp_path / "run"
    learn = ("optim.lr=1e-3", "rollout.prompts_per_epoch=32", "trainer.max_epochs=12", "trainer.val_every_n_epochs=12")
    assert main(("fit", *SMALL, *learn, f"output_dir={run}")) == 0
    for name, problems in (("few", 60), ("many", 660)):
        size = (f"task.num_held_out={problems}", "rollout.eval_samples=4")
        assert main(("test", *SMALL, *size, f"output_dir={tmp_path / name}")) == 0
        assert main(("test", f"resume={run}", "export.checkpoint=last", *size)) == 0
        (run / "test" / "step_00000012.jsonl").rename(tmp_path / name / "after.jsonl")
        (tmp_path / name / "test" / "step_00000000.jsonl").rename(tmp_path / name / "before.jsonl")
        files = [str(tmp_path / name / f"{moment}.jsonl") for moment in ("before", "after")]
        assert main(("compare", *files, f"output={tmp_path / name}")) == 0
    few, many = (
        json.loads((tmp_path / name / "comparison.json").read_text())["results"][0] for name in ("few", "many")
    )
    assert (few["num_problems"], many["num_problems"]) == (60, 660)
    # The policy has learned, and both see it.
    assert many["low"] > 0.05
    assert few["low"] < many["value"] < few["high"]
    # Ten times as many problems, about a third of the error; and pairing makes it smaller than two errors apart.
    assert 2 < few["standard_error"] / many["standard_error"] < 5
    assert few["detectable"] == pytest.approx(2.8015852 * few["standard_error"], rel=1e-6)
