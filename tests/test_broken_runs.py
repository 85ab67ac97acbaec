"""What a broken run leaves, and that it ends where an unbroken one does: real runs, broken on purpose."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from breaking import RUN, Break, BrokenError, broken
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from training import fit, widest_difference

from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.resuming import resumed
from rlvr_lightning.training import checkpoint_io as io


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    fit(folder, *RUN)
    return folder


def assert_as_unbroken(folder: Path, unbroken: Path) -> None:
    """Weights and optimizer to the last bit, the same phases, the same table."""
    assert io.newest(folder / "checkpoints").name == "step_00000012"
    assert widest_difference(folder, unbroken) == 0
    phases = [sorted(path.name for path in run.glob("rollouts/version_*")) for run in (folder, unbroken)]
    assert phases[0] == phases[1]
    for mine, theirs in zip(*(read_table(run / "logs" / "metrics.csv") for run in (folder, unbroken)), strict=True):
        assert {k: v for k, v in mine.items() if "perf/" not in k} == {
            k: v for k, v in theirs.items() if "perf/" not in k
        }


@pytest.mark.parametrize(
    ("setting", "saved"), [("trainer.save_every_n_steps=3", 6), ("trainer.save_every_n_minutes=1e-6", 7)]
)
def test_after_an_error_the_last_checkpoint_is_resumed_in_mid_epoch(
    setting: str, saved: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is written to the folder for temporary files, which may be too small or on another file system.
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(BrokenError):
        broken(tmp_path, Break(BrokenError(), 7), setting)
    assert io.newest(tmp_path / "checkpoints").name == f"step_{saved:08}"
    assert main(("fit", f"resume={tmp_path}")) == 0
    assert_as_unbroken(tmp_path, unbroken)


@pytest.mark.parametrize(
    ("moment", "version", "saved"),
    [
        ("step", 5, 5),
        pytest.param("sampling", 4, 4, marks=pytest.mark.slow),
        pytest.param("scoring", 4, 4, marks=pytest.mark.slow),
        pytest.param("validation", 8, 8, marks=pytest.mark.slow),
        ("within a step", 6, None),
    ],
)
def test_ctrl_c_saves_between_steps_wherever_it_strikes(
    moment: str, version: int, saved: int | None, unbroken: Path, tmp_path: Path
) -> None:
    # A cluster's notice is heeded at the same moments.
    error = SIGTERMException() if moment == "step" else KeyboardInterrupt()
    with pytest.raises(SystemExit):
        broken(tmp_path, Break(error, version, moment))
    if saved is None:  # in the middle of a step there is nothing whole to save, and nothing was before
        assert not (tmp_path / "checkpoints").exists()
        return
    assert [path.name for path in io.complete(tmp_path / "checkpoints")] == [f"step_{saved:08}"]
    assert main(("fit", f"resume={tmp_path}")) == 0
    assert_as_unbroken(tmp_path, unbroken)


class BreakBetween(Break):
    """Between an epoch's validation and its end, which Lightning tells its callbacks one after another."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._at("epoch's end", trainer)


def test_between_a_validation_and_its_epochs_end_nothing_is_saved(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        broken(tmp_path, BreakBetween(KeyboardInterrupt(), 8, "epoch's end"), "trainer.save_every_n_steps=3")
    # What was saved in mid-epoch; of version 8 it could not be said whether its epoch is over.
    assert [path.name for path in io.complete(tmp_path / "checkpoints")] == ["step_00000006"]


class CountingSteps(Callback):
    """One of a user's own, with a state."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


def test_a_users_own_callback_goes_on_where_it_was(tmp_path: Path) -> None:
    build_run(compose([*RUN, "trainer.max_epochs=1", f"output_dir={tmp_path}"]), [CountingSteps()]).fit()
    counting = CountingSteps()
    build_run(resumed(compose([f"resume={tmp_path}"]), ["trainer.max_epochs=2"]), [counting]).fit()
    assert counting.steps == 8


def test_a_finished_run_says_so_and_does_nothing(
    unbroken: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    run = build_run(compose([*RUN, f"output_dir={unbroken}", f"resume={unbroken}"]))
    with caplog.at_level("INFO"):
        run.fit()
    assert "finished: 3 epochs are done" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()} == before


def test_a_full_disk_stops_the_run_with_one_line_and_is_resumed(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "checkpoints"
    disk.mkdir()
    # One checkpoint has 10.5 MB.
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=15m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        assert main(("fit", *RUN, "trainer.save_every_n_steps=2", f"output_dir={tmp_path}")) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert f"the last complete checkpoint is as it was: make room, then fit resume={tmp_path}" in line
        assert [path.name for path in disk.iterdir()] == ["step_00000002"]
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        assert main(("fit", f"resume={tmp_path}")) == 0
        assert_as_unbroken(tmp_path, unbroken)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_too_small_for_the_first_checkpoint_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "checkpoints"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        assert main(("fit", *RUN, "trainer.save_every_n_steps=2", f"output_dir={tmp_path}")) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert "there was none before: make room" in line
        assert "resume=" not in line
    finally:
        subprocess.run(["umount", disk], check=True)


class Counting(torch.optim.Optimizer):
    """Momentum, and a step size that falls with a count kept as a plain number, as 8-bit optimizers have it."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    state["count"] = state.get("count", 0) + 1
                    # Of another shape and kind than the weight.
                    state["largest"] = weight.grad.abs().max().double().view(1, 1)
                    state["momentum"] = 0.9 * state.get("momentum", 0.0) + weight.grad
                    weight.sub_(state["momentum"], alpha=group["lr"] / state["count"])


@pytest.mark.slow
def test_an_optimizer_may_keep_plain_numbers_and_any_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr_lightning.module.make_optimizer", lambda _, weights: Counting(weights))
    fit(tmp_path / "whole", *RUN)
    with pytest.raises(SystemExit):
        broken(tmp_path / "broken", Break(KeyboardInterrupt(), 6))
    held = io.read_state(io.newest(tmp_path / "broken" / "checkpoints"))["optimizer"]
    assert held["model.model.norm.weight"] == {"count": 6}
    assert main(("fit", f"resume={tmp_path / 'broken'}")) == 0
    assert_as_unbroken(tmp_path / "broken", tmp_path / "whole")
