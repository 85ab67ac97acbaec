"""Which rollout phases a run draws: each once, none for nothing, and those of an epoch under way not again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from training import SMALL, recorded, widest_difference

from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.datamodule import RolloutDataModule

# Four optimizer steps a phase; measured after the third epoch alone.
OFF_POLICY = (
    "conf=archer",
    "rollout.prompts_per_step=4",
    "rollout.passes=2",
    "trainer.max_epochs=3",
    "trainer.val_every_n_epochs=3",
)


class At(Callback):
    """Before a step: press Ctrl-C, or keep the output folder as a kill at that moment leaves it."""

    def __init__(self, stop: int = -1, killed: int = -1, copy: Path | None = None) -> None:
        self.stop, self.killed, self.copy = stop, killed, copy

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.policy_version == self.killed:
            assert self.copy is not None
            shutil.copytree(trainer.datamodule.output_dir, self.copy)  # type: ignore[attr-defined]
        if pl_module.policy_version == self.stop:
            raise KeyboardInterrupt


def run(folder: Path, at: At, *overrides: str) -> None:
    build_run(compose([*SMALL, *OFF_POLICY, *overrides, f"output_dir={folder}"]), [at]).fit()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Policy versions of the phases drawn, in order."""
    versions: list[int] = []
    collect = RolloutDataModule._collect

    def recording(self: RolloutDataModule, version: int) -> None:
        versions.append(version)
        collect(self, version)

    monkeypatch.setattr(RolloutDataModule, "_collect", recording)
    return versions


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(folder, At())
    return folder


def test_no_phase_is_drawn_for_nothing(unbroken: Path, tmp_path: Path, drawn: list[int]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, At(stop=6))
    assert drawn == [0, 4]
    assert main(("fit", f"resume={tmp_path}")) == 0
    assert drawn == [0, 4, 8]
    assert main(("fit", f"resume={tmp_path}")) == 0
    assert drawn == [0, 4, 8]
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=4")) == 0
    assert drawn == [0, 4, 8, 12]
    run(tmp_path / "none", At(), "trainer.max_epochs=0")
    assert drawn == [0, 4, 8, 12]


def test_stopped_resumed_and_killed_it_can_be_resumed_again(unbroken: Path, tmp_path: Path, drawn: list[int]) -> None:
    """The killed session had drawn a further phase when it fell back to the checkpoint in the middle of the one before."""
    first, killed = tmp_path / "first", tmp_path / "killed"
    with pytest.raises(SystemExit):
        run(first, At(stop=6))
    resume = build_run(compose([*SMALL, *OFF_POLICY, f"output_dir={first}", f"resume={first}"]), [At(-1, 9, killed)])
    resume.fit()
    assert drawn == [0, 4, 8]
    assert main(("fit", f"resume={killed}")) == 0
    assert drawn == [0, 4, 8, 8]
    assert widest_difference(unbroken, first) == widest_difference(unbroken, killed) == 0


def test_a_resumed_phase_is_recorded_as_it_was(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, At(stop=6))
    assert main(("fit", f"resume={tmp_path}")) == 0
    for version in (0, 4, 8):
        mine, theirs = (recorded(folder, version) for folder in (tmp_path, unbroken))
        assert mine == theirs
        assert len(mine) == 32


REFUSED = [
    (
        "rollout.group_size=8",
        r"rollout.group_size cannot be changed in the middle of an epoch \(2 of 4 steps are done\)",
    ),
    ("rollout.temperature=0.9", "rollout.temperature cannot be changed in the middle of an epoch"),
    ("rollout.passes=1", "a run keeps its optimizer steps an epoch, by which schedules count: they were 4, "),
    ("rollout.max_prompt_tokens=12", "the prompts, or their order, are not those the run began with"),
    ("task.seed=3", "the prompts, or their order, are not those the run began with"),
]


@pytest.mark.slow
def test_what_would_make_it_another_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[int]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, At(stop=6))
    for override, message in REFUSED:
        capsys.readouterr()
        assert main(("fit", f"resume={tmp_path}", override)) == 2, override
        said = capsys.readouterr().err
        assert said.count("error: ") == 1
        assert re.search(message, said), said
    # The rest of the epoch is of the phase drawn; what decides how responses are drawn holds for the next.
    assert main(("fit", f"resume={tmp_path}", "rollout.max_new_tokens=40")) == 0
    assert drawn == [0, 4, 8]
