"""`test benchmark=[...]` and benchmarks in `fit`: the command line, the bundled model, files as a user has them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from measuring import arguments, laid_out, measure, responses
from training import SMALL, fit, widest_difference
from waiting import until

from rlvr_lightning.cli.main import main
from rlvr_lightning.evaluation.statistics import accuracies, compared
from rlvr_lightning.tasks.arithmetic import Arithmetic
from rlvr_lightning.tasks.outcomes import read_outcomes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laid_out(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def measured(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model on both benchmarks, in one go."""
    output = tmp_path_factory.mktemp("measured")
    measure(place, output, "benchmark=[sums,again]")
    return output / "benchmarks" / "tiny"


def test_files_of_a_measurement(measured: Path) -> None:
    assert sorted(str(path.relative_to(measured)) for path in measured.rglob("*") if path.is_file()) == [
        "again.json",
        "again.jsonl",
        "responses/again.jsonl",
        "responses/again.protocol.json",
        "responses/sums.jsonl",
        "responses/sums.protocol.json",
        "summary.json",
        "summary.md",
        "sums.json",
        "sums.jsonl",
    ]
    problems = read_outcomes(measured / "sums.jsonl")
    assert [problem.id for problem in problems] == [problem.id for problem in Arithmetic(num_held_out=12).held_out()]
    assert problems[5].cluster == "2"
    records = responses(measured)
    for problem in problems:
        mine = [record for record in records if record["problem_id"] == problem.id]
        assert [record["sample"] for record in mine] == [0, 1]
        assert tuple(record["correct"] for record in mine) == problem.correct
        # Judged as the verifier does: what stands behind the last #.
        for record in mine:
            said = str(record["response"]).rpartition("#")[2].strip()
            assert record["correct"] is (said == record["answer"])
    average, _ = accuracies(problems, 2)
    held = json.loads((measured / "sums.json").read_text())
    assert held["average"] == {**average.record(), "name": "sums avg@2"}
    assert 0.1 < held["average"]["value"] < 0.9
    assert held["average"]["num_units"] == 6
    assert held["verdicts"]["correct"] == sum(record["correct"] is True for record in records)
    summary = json.loads((measured / "summary.json").read_text())
    assert [one["benchmark"] for one in summary["benchmarks"]] == ["sums", "again"]
    assert summary["benchmarks"][1]["pass"]["name"] == "again pass@2"
    means = [one["average"]["value"] for one in summary["benchmarks"]]
    assert summary["mean"]["value"] == pytest.approx(sum(means) / 2)


def test_what_is_there_is_not_drawn_again(
    place: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short anywhere, a measurement ends with the same responses."""
    whole = responses(measured)
    measure(place, tmp_path, "evaluation.batch_responses=5")
    folder = tmp_path / "benchmarks" / "tiny"
    assert responses(folder) == whole
    file = folder / "responses" / "sums.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    # A marked response shows whether it was kept; a cut line, and a problem with one of its two responses, are not.
    marked = json.dumps({**json.loads(lines[0]), "response": "kept"}).encode() + b"\n"
    file.write_bytes(b"".join([marked, *lines[1:9], lines[9][:20]]))
    before = (folder / "sums.json").read_text()
    measure(place, tmp_path)
    found = responses(folder)
    assert found[0]["response"] == "kept"
    key = {(record["problem_id"], record["sample"]): record for record in found[1:]}
    assert all(key[(record["problem_id"], record["sample"])] == record for record in whole[1:])
    assert (folder / "sums.json").read_text() == before


def test_another_protocol_is_not_mixed_in(place: Path, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = measured.parents[1]
    changed = arguments(place, "benchmark=[sums]", f"output_dir={output}", "evaluation.temperature=0.5")
    assert main(("test", *changed)) == 2
    error = capsys.readouterr().err
    assert "holds responses of temperature=1.0, and temperature=0.5 is asked for" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("evaluation.samples=3", {"samples": 3}),
        ("evaluation.temperature=0.4", {"temperature": 0.4}),
        ("evaluation.top_p=0.5", {"top_p": 0.5}),
        ("evaluation.max_new_tokens=5", {"max_new_tokens": 5}),
        ("seed=1", {"seed": 1}),
    ],
)
def test_settings_for_all_benchmarks(
    place: Path, measured: Path, tmp_path: Path, setting: str, changed: dict[str, object]
) -> None:
    measure(place, tmp_path, setting, "evaluation.limit=4")
    folder = tmp_path / "benchmarks" / "tiny"
    before, after = (json.loads((path / "responses" / "sums.protocol.json").read_text()) for path in (measured, folder))
    assert after == {**before, **changed}
    drawn = responses(folder)
    assert len({record["problem_id"] for record in drawn}) == 4
    assert len(drawn) == 4 * after["samples"]
    whole = {(record["problem_id"], record["sample"]): record["response"] for record in responses(measured)}
    same = [record["response"] == whole.get((record["problem_id"], record["sample"])) for record in drawn]
    # More samples leave the first ones as they were; everything else changes what is drawn.
    assert (sum(same) == 8) if setting == "evaluation.samples=3" else not all(same)


def test_greedy_responses_are_all_the_same(place: Path, tmp_path: Path) -> None:
    measure(place, tmp_path, "evaluation.temperature=0.0", "evaluation.limit=3")
    drawn = responses(tmp_path / "benchmarks" / "tiny")
    of_problem: dict[object, set[object]] = {}
    for record in drawn:
        of_problem.setdefault(record["problem_id"], set()).add(record["response"])
    assert [len(held) for held in of_problem.values()] == [1, 1, 1]


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is measured at steps 0, 2, and at its end, step 3."""
    folder = tmp_path_factory.mktemp("run") / "run"
    more = ("benchmark=[sums]", "evaluation.every_n_steps=2", "trainer.max_epochs=3", f"output_dir={folder}")
    assert main(("fit", *SMALL, *arguments(place, *more))) == 0
    return folder


def test_a_run_measures_as_it_goes(run: Path, measured: Path, tmp_path: Path, place: Path) -> None:
    steps = sorted(path.name for path in (run / "benchmarks").iterdir())
    assert steps == ["step_00000000", "step_00000002", "step_00000003"]
    # Before the first step it is the model itself.
    assert responses(run / "benchmarks" / steps[0]) == responses(measured)
    table = (run / "logs" / "metrics.csv").read_text().splitlines()
    columns = table[0].split(",")
    logged = {
        int(row["step"]): float(row["benchmark/sums/avg_at_k"])
        for row in (dict(zip(columns, line.split(","), strict=True)) for line in table[1:])
        if row["benchmark/sums/avg_at_k"]
    }
    written = {
        int(step.removeprefix("step_")): json.loads((run / "benchmarks" / step / "sums.json").read_text())
        for step in steps
    }
    assert logged == {step: pytest.approx(held["average"]["value"]) for step, held in written.items()}
    # Nothing that is learned depends on it.
    fit(tmp_path / "plain", "trainer.max_epochs=3")
    assert widest_difference(run, tmp_path / "plain") == 0


def test_a_run_and_its_checkpoint_are_measured_as_it_did(run: Path, place: Path, tmp_path: Path) -> None:
    last = run / "benchmarks" / "step_00000003"
    before = responses(last)
    stamp = (last / "responses" / "sums.jsonl").stat().st_mtime_ns
    common = ("benchmark=[sums]", "export.checkpoint=last")
    assert main(("test", f"resume={run}", *arguments(place, *common))) == 0
    assert (last / "responses" / "sums.jsonl").stat().st_mtime_ns == stamp
    checkpoint = run / "checkpoints" / "step_00000003"
    models = f"evaluation.models=[{run},tiny,{checkpoint}]"
    assert main(("test", *arguments(place, *common, models, f"output_dir={tmp_path}"))) == 2
    assert (
        main(("test", *arguments(place, *common, f"evaluation.models=[tiny,{checkpoint}]", f"output_dir={tmp_path}")))
        == 0
    )
    assert responses(tmp_path / "benchmarks" / "run-step_00000003") == before


def test_several_policies_stand_beside_each_other(
    run: Path,
    place: Path,
    measured: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    models = f"evaluation.models=[tiny,{run}]"
    measure(place, tmp_path, models, "export.checkpoint=last", "evaluation.limit=6", "+benchmarks.published=[]")
    shown = capsys.readouterr().out
    folder = tmp_path / "benchmarks"
    first, second = (read_outcomes(folder / name / "sums.jsonl") for name in ("tiny", "run-step_00000003"))
    found = compared(first, second)
    assert f"{found.value:+.4f}" in shown
    assert f"{found.value:+.4f}" in (folder / "run-step_00000003-against-tiny.md").read_text()
    assert (folder / "table.md").read_text().count("measured") == 2


def test_published_rows_are_shown_beside_ours(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = "+benchmarks.published=[{_target_: rlvr_lightning.Published, model: M, source: S, averages: {sums: 12.34}, mean: 5.0}]"
    measure(place, tmp_path, "evaluation.limit=2", rows.removeprefix("+"))
    shown = capsys.readouterr().out
    assert "published: S" in shown
    assert "12.3" in shown


def test_a_killed_measurement_goes_on(place: Path, measured: Path, tmp_path: Path) -> None:
    """SIGKILL at a moment of its own choosing; then the same command."""
    command = [
        sys.executable,
        "-m",
        "rlvr_lightning",
        "test",
        *arguments(place, "benchmark=[sums]", f"output_dir={tmp_path}"),
    ]
    process = subprocess.Popen(
        [*command, "evaluation.batch_responses=1"], start_new_session=True, stdout=subprocess.DEVNULL
    )
    file = tmp_path / "benchmarks" / "tiny" / "responses" / "sums.jsonl"
    assert until(lambda: file.is_file() and file.read_bytes().count(b"\n") >= 3, 120)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    assert 3 <= kept.count(b"\n") < 24
    assert main(("test", *command[4:])) == 0
    assert file.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert sorted(map(str, responses(file.parents[1]))) == sorted(map(str, responses(measured)))


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(place: Path, measured: Path, tmp_path: Path) -> None:
    ranks = ("strategy=ddp", "trainer.devices=2", "evaluation.batch_responses=6")
    more = arguments(place, "benchmark=[sums,again]", f"output_dir={tmp_path}", *ranks)
    subprocess.run([sys.executable, "-m", "rlvr_lightning", "test", *more], check=True, timeout=300)
    folder = tmp_path / "benchmarks" / "tiny"
    for name in ("sums", "again"):
        assert responses(folder, name) == responses(measured, name)
        assert (folder / f"{name}.json").read_text() == (measured / f"{name}.json").read_text()


@pytest.mark.slow
def test_two_ranks_measure_while_they_learn(place: Path, measured: Path, tmp_path: Path) -> None:
    ranks = ("strategy=ddp", "trainer.devices=2", "trainer.max_epochs=1")
    more = arguments(place, "benchmark=[sums]", "evaluation.every_n_steps=1", f"output_dir={tmp_path}", *ranks)
    subprocess.run([sys.executable, "-m", "rlvr_lightning", "fit", *SMALL, *more], check=True, timeout=300)
    folder = tmp_path / "benchmarks"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000000", "step_00000001"]
    assert responses(folder / "step_00000000") == responses(measured)
    assert len(responses(folder / "step_00000001")) == 24
