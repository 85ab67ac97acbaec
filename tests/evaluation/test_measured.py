"""What `validate` and `test` show and leave: of the real command line, the bundled model and a real verifier."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from training import SMALL, fit

from rlvr_lightning.cli.main import main
from rlvr_lightning.errors import DataError
from rlvr_lightning.evaluation.statistics import accuracies, as_markdown, compared
from rlvr_lightning.evaluation.statistics.compare import compare_files
from rlvr_lightning.tasks.arithmetic import Arithmetic
from rlvr_lightning.tasks.outcomes import read_outcomes
from rlvr_lightning.types import Outcomes

MANY = (*SMALL, "task.num_held_out=24")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(folder, "task.num_held_out=24", "optim.lr=2e-3")
    return folder


def row(shown: str, name: str) -> list[str]:
    """A row of the table on the screen."""
    (line,) = [line for line in shown.splitlines() if f" {name} " in line]
    return [cell.strip() for cell in line.strip("│┃").split("│")]


def test_the_table_has_errors_and_files_lie_beside_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("validate", f"resume={trained}", "export.checkpoint=last")) == 0
    validated = capsys.readouterr().out
    assert not (trained / "test").exists()
    assert main(("test", f"resume={trained}", "export.checkpoint=last")) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in (trained / "test").iterdir()) == [
        f"step_00000002.{kind}" for kind in ("json", "jsonl", "md")
    ]
    problems = read_outcomes(trained / "test" / "step_00000002.jsonl")
    assert [problem.id for problem in problems] == [problem.id for problem in Arithmetic(num_held_out=24).held_out()]
    assert {len(problem.correct) for problem in problems} == {2}
    assert all(problem.rewards == tuple(map(float, problem.correct)) for problem in problems)  # type: ignore[arg-type]
    results = accuracies(problems, 2)
    for result in results:
        assert row(shown, result.name) == row(validated, result.name) == list(result.cells().values())
    assert (trained / "test" / "step_00000002.md").read_text() == as_markdown(results)
    held = json.loads((trained / "test" / "step_00000002.json").read_text())
    assert held.pop("results") == [result.record() for result in results]
    assert held == {
        "name": "run",
        "model": "tiny",
        "policy_version": 2,
        "seed": 0,
        "samples": 2,
        "temperature": 1.0,
        "max_new_tokens": 48,
        "without_verdict": 0,
    }


def test_two_policies_are_compared_by_their_files(trained: Path, tmp_path: Path) -> None:
    assert main(("test", *MANY, f"output_dir={tmp_path}")) == 0
    assert main(("test", f"resume={trained}", "export.checkpoint=last")) == 0
    assert main(("predict", f"resume={trained}", "export.checkpoint=last")) == 0
    before, after = tmp_path / "test" / "step_00000000.jsonl", trained / "test" / "step_00000002.jsonl"
    found = compare_files(before, after)
    assert found == compared(read_outcomes(before), read_outcomes(after))
    first, second = (json.loads(path.with_suffix(".json").read_text())["results"][0] for path in (before, after))
    assert (found.first, found.second) == (pytest.approx(first["value"]), pytest.approx(second["value"]))
    assert found.num_problems == 24
    assert 0 < found.standard_error < first["standard_error"] + second["standard_error"]
    assert found.low <= found.value <= found.high
    # What was sampled for predictions is what was measured.
    again = compare_files(after, trained / "predictions.jsonl.gz", of="rewards")
    assert (again.value, again.p_value, again.correlation) == (0.0, 1.0, pytest.approx(1.0))


def test_clusters_of_a_file_reach_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rows = [
        {"id": problem.id, "problem": problem.messages[0]["content"], "answer": problem.answer, "cluster": place // 3}
        for place, problem in enumerate(Arithmetic().held_out())
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ("task=jsonl", f"task.path={path}", f"task.held_out_path={path}", "task.held_out=12", "verifier=exact")
    small = [item for item in SMALL if not item.startswith("task.")]
    assert main(("test", *small, *task, "task.template='{problem}'", f"output_dir={tmp_path}")) == 0
    assert row(capsys.readouterr().out, "avg@2")[4] == "12 in 4 clusters"
    problems = read_outcomes(tmp_path / "test" / "step_00000000.jsonl")
    assert [problem.cluster for problem in problems] == [str(place // 3) for place in range(12)]


def test_a_run_without_held_out_problems_has_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("test", *SMALL, "task.num_held_out=0", f"output_dir={tmp_path}")) == 2
    assert "error: run has no held-out problems to measure on" in capsys.readouterr().err


def test_files_of_other_problems_are_refused(tmp_path: Path) -> None:
    for name, problem in (("a", Outcomes("p", (True,))), ("b", Outcomes("q", (True,)))):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": problem.id, "correct": problem.correct}) + "\n")
    with pytest.raises(DataError, match="a paired comparison needs the same problems: 1 and 1, of which 2 stand"):
        compare_files(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    for name, ranks in (("one", ()), ("two", ("strategy=ddp", "trainer.devices=2"))):
        arguments = ("test", *SMALL, "task.num_held_out=7", *ranks, f"output_dir={tmp_path / name}")
        subprocess.run([sys.executable, "-m", "rlvr_lightning", *arguments], check=True, timeout=300)
    for kind in ("json", "md", "jsonl"):
        one, two = ((tmp_path / name / "test" / f"step_00000000.{kind}").read_text() for name in ("one", "two"))
        assert one == two
