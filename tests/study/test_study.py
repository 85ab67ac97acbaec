"""Studies: which runs there are, what they come to, and that a kill costs nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from studies import STUDY, put, spec
from waiting import until

from rlvr_lightning.cli.study import _keep, _launcher, _settings, run_one, study
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.study.runs import read_runs
from rlvr_lightning.study.spec import FINISHED, RUNS, Study


def test_runs_are_methods_times_seeds(tmp_path: Path) -> None:
    jobs = spec(overrides=["x=1"]).jobs(tmp_path)
    assert [(job.method, job.seed) for job in jobs] == [("a", 1), ("b", 3), ("a", 2), ("b", 1), ("a", 3)]
    assert jobs[1].overrides == ("conf=archer", "optim.lr=1", "x=1", "seed=3")
    assert jobs[1].folder == tmp_path / "runs" / "b" / "seed_3"
    assert not jobs[1].finished
    jobs[1].folder.mkdir(parents=True)
    (jobs[1].folder / FINISHED).write_text("{}")
    assert [job.finished for job in jobs] == [False, True, False, False, False]
    assert (spec().title_of("a"), spec().title_of("b")) == ("a", "B")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "c"}, "study.baseline=c is none of its methods"),
        ({"shown": ["a", "c"]}, "study.shown=c is none of its methods"),
        ({"seeds": []}, "study.methods.a: seeds must be there, each once"),
        ({"seeds": [1, 1]}, r"each once; got \[1, 1\]"),
        ({"also": ["policy/entropy"]}, r"study.also must be series by title .* got \['policy/entropy'\]"),
        ({"also": {"avg@k": "policy/entropy"}}, r"avg@k is compared anyway"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**changes)


def test_a_key_that_is_none_is_told() -> None:
    settings = OmegaConf.to_container(OmegaConf.create(STUDY))
    assert isinstance(settings, dict)
    assert Study.of(settings).seeds_of("lp_reg") == [1]
    with pytest.raises(ConfigError, match="study: .*unexpected keyword argument 'seed'"):
        Study.of({**settings, "seed": 1})


def test_a_study_names_no_place_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM2", "/some/folder")
    settings, _ = _settings(["conf=smollm2"])
    assert "/some/folder" not in str(settings)
    (job, *_) = Study.of(settings).jobs(Path("out"))
    assert compose(job.overrides).model.path == "/some/folder"


def command(tmp_path: Path, *more: str) -> list[str]:
    put(tmp_path / "conf")
    out = f"output_dir={tmp_path / 'out'}"
    return [
        sys.executable,
        "-m",
        "rlvr_lightning",
        "study",
        "--config-dir",
        str(tmp_path / "conf"),
        "conf=small",
        out,
        *more,
    ]


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_and_its_report_is_the_same_from_the_files(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    runs = tmp_path / "out" / "runs"
    assert until(lambda: any(runs.glob("*/*/checkpoints/step_*")), 120), "no run has saved anything"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.parent.name for path in runs.glob(f"*/*/{FINISHED}")}
    assert len(before) < 3
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert f"report: {tmp_path / 'out' / 'report.md'}" in again.stdout
    settings = OmegaConf.to_container(OmegaConf.load(tmp_path / "out" / "study.yaml"))
    found = read_runs(Study.of(settings), tmp_path / "out")  # type: ignore[arg-type]
    assert [(run.method, run.seed) for run in found] == [("grpo", 0), ("lp_reg", 1), ("grpo", 1)]
    for run in found:
        assert [step for step, _ in run.series["val/avg_at_k"]] == [0, 1, 2, 3, 4]
    # Nothing is left to do, and the report is made of the files alone.
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    figures = ("shown.png", "curves_1.png", "probabilities.png", "forces.png")
    assert {"report.md", "report.html", *figures, "study.yaml"} <= set(made)
    for name in ("report.md", "report.html", *figures):
        (tmp_path / "out" / name).unlink()
    assert study([f"report={tmp_path / 'out'}"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == made
    assert "| GRPO | 2 |" in made["report.md"].decode()
    # A run of a study is that of the same command by hand.
    alone = [
        sys.executable, "-m", "rlvr_lightning", "fit", "conf=[lp_reg,sparks]", "regularizer.lp_reg.quantile=0.3",
        *settings["overrides"], "seed=1", f"output_dir={tmp_path / 'alone'}",  # type: ignore[call-overload, index]
    ]  # fmt: skip
    subprocess.run(alone, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    folders = (tmp_path / "alone", runs / "lp_reg" / "seed_1")
    tables = [(path / "logs" / "metrics.csv").read_text().splitlines() for path in folders]
    columns = tables[0][0].split(",")
    assert columns == tables[1][0].split(",")
    timed = {place for place, name in enumerate(columns) if name.startswith("perf/") or name.endswith("_s")}
    for one, other in zip(*tables, strict=True):
        kept = [[cell for place, cell in enumerate(line.split(",")) if place not in timed] for line in (one, other)]
        assert kept[0] == kept[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_a_run_that_fails_is_told_and_the_others_go_on(launcher: str, tmp_path: Path) -> None:
    text = STUDY.replace("seeds: [0, 1]", "seeds: [0]").replace(
        "regularizer.lp_reg.quantile=0.3", "regularizer.lp_reg.quantile=-1"
    )
    # In this process, one after another, as where no launcher is installed; or as a cluster's, on this machine.
    line = command(tmp_path, f"hydra/launcher={launcher}")
    put(tmp_path / "conf", text)
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert "1/2" in ended.stderr
    assert "error" not in (tmp_path / "out" / "runs" / "grpo" / "seed_0.log").read_text().lower()
    assert "held-out" in (tmp_path / "out" / "runs" / "grpo" / "seed_0.log").read_text()
    assert "failed: lp_reg, seed 1: LpReg.quantile must be in (0, 1); got -1" in ended.stderr
    assert (tmp_path / "out" / "runs" / "grpo" / "seed_0" / FINISHED).exists()
    assert "1 more are not finished" in (tmp_path / "out" / "report.md").read_text()
    # The same folder for something else.
    put(tmp_path / "conf", STUDY.replace("quantile=0.3", "quantile=0.2"))
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert "holds a study with other settings (method lp_reg): choose another folder" in ended.stderr


def test_a_run_computes_with_the_threads_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    (tmp_path / "run").mkdir()
    cfg = OmegaConf.create({"output_dir": str(tmp_path / "run")})
    monkeypatch.setattr("rlvr_lightning.cli.study.settled", lambda cfg, later, training: cfg)
    monkeypatch.setattr("rlvr_lightning.cli.study.fit", lambda cfg: seen.append(torch.get_num_threads()))
    try:
        for threads in (3, 1):
            run_one(cfg, threads)
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 1]
    assert (tmp_path / "run" / FINISHED).exists()


def test_without_the_plugin_runs_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _launcher(["hydra.launcher.n_jobs=3"])[-1] == "hydra.launcher.n_jobs=3"
    assert _launcher([])[0] == "hydra/launcher=joblib"
    assert _launcher(["hydra/launcher=basic"]) == ["hydra/launcher=basic"]

    def absent(name: str) -> None:
        # As importlib's own: whoever asks for a module of a package that is not there gets an error.
        if "." in name:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr("rlvr_lightning.cli.study.find_spec", absent)
    assert _launcher([]) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("regularizer.lp_reg.quantil=0.3", "there is no setting regularizer.lp_reg.quantil"),
        ("constraint=clip_hihger", "there is no constraint=clip_hihger; did you mean clip_higher"),
        ("rollout.passes=two", "rollout.passes must be a whole number; got 'two'"),
    ],
)
def test_what_the_last_method_gets_wrong_is_told_before_the_first_run(wrong: str, message: str, tmp_path: Path) -> None:
    text = STUDY.replace("regularizer.lp_reg.quantile=0.3", wrong)
    assert text != STUDY
    line = command(tmp_path)
    put(tmp_path / "conf", text)
    with pytest.raises(ConfigError, match=re.escape(f"study.methods.lp_reg: {message}")):
        study(line[4:])
    # Nothing is written: mended, the same command begins.
    assert not (tmp_path / "out").exists()


def test_a_method_that_has_no_run_yet_may_be_changed(tmp_path: Path) -> None:
    settings = {"overrides": [], "methods": {"one": {"overrides": ["a=1"]}, "two": {"overrides": ["b=1"]}}}
    _keep({**settings, "overrides": ["c=0"]}, tmp_path)
    _keep(settings, tmp_path)
    (tmp_path / RUNS / "one").mkdir(parents=True)
    settings["methods"]["two"]["overrides"] = ["b=2"]  # type: ignore[call-overload, index]
    _keep(settings, tmp_path)
    assert OmegaConf.load(tmp_path / "study.yaml").methods.two.overrides == ["b=2"]
    with pytest.raises(ConfigError, match="with other settings .overrides of all runs."):
        _keep({**settings, "overrides": ["c=1"]}, tmp_path)
    settings["methods"]["one"]["overrides"] = ["a=2"]  # type: ignore[call-overload, index]
    with pytest.raises(ConfigError, match="with other settings .method one."):
        _keep(settings, tmp_path)


def test_what_is_no_study_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="study needs conf=NAME"):
        study([])
    with pytest.raises(ConfigError, match="there is no study=spark"):
        study(["conf=spark"])
    with pytest.raises(ConfigError, match="study has no option --force"):
        study(["conf=spark", "--force"])
    with pytest.raises(DataError, match="there is no study.yaml"):
        study([f"report={tmp_path}"])
    (tmp_path / "study.yaml").write_text(STUDY)
    with pytest.raises(DataError, match="has no finished run"):
        study([f"report={tmp_path}"])
