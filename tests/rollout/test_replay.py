"""A recorded run once more: the same numbers to the last bit, or another objective on the same responses."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import SMALL, fit, last_checkpoint, widest_difference

from rlvr_lightning.callbacks.table import Row, read_table
from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import DataError

# Forty optimizer steps, eight a phase.
RUN = ("conf=archer", "rollout.prompts_per_step=2", "trainer.max_epochs=5", "trainer.val_every_n_epochs=2")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "run"
    fit(folder, *RUN)
    return folder


def replay(folder: Path, recording: Path, *overrides: str) -> None:
    mine = [item for item in SMALL if not item.startswith("engine=")]
    source = ("engine=replay", f"engine.path={recording}", f"output_dir={folder}")
    build_run(compose([*mine, *RUN, *source, *overrides])).fit()


def books(folder: Path) -> list[Row]:
    """The table, without how fast it went."""
    rows = read_table(folder / "logs" / "metrics.csv")
    kept = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    return [{k: v for k, v in row.items() if k != "rollout/off_policy"} for row in kept]


def test_a_replay_is_the_run_to_the_last_bit(recording: Path, tmp_path: Path) -> None:
    replay(tmp_path, recording)
    assert [row["step"] for row in books(recording)] == ["0", "8", "16", "24", "32", "40"]
    assert books(tmp_path) == books(recording)
    assert widest_difference(tmp_path, recording) == 0
    said = [row["rollout/off_policy"] for row in read_table(tmp_path / "logs" / "metrics.csv")[1:]]
    assert said == ["0.0"] * 5


def test_another_objective_learns_off_policy_and_says_so(
    recording: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replay(tmp_path, recording, "conf=grpo", "rollout.prompts_per_step=2", "optim.lr=1e-3")
    before, *rows = read_table(tmp_path / "logs" / "metrics.csv")
    assert [row["rollout/off_policy"] for row in rows] == ["0.0", "1.0", "1.0", "1.0", "1.0"]
    assert any("learning from them is off-policy" in record.getMessage() for record in caplog.records)
    # Held-out responses of the recorded policy are not given out for this one's, but before the first step they are its own.
    assert before["val/avg_at_k"] == books(recording)[0]["val/avg_at_k"]
    assert [("val/avg_at_k" in row) for row in rows] == [False] * 5
    assert "val/avg_at_k" in books(recording)[2]
    # The ratio is to the policy that answered then.
    ratios = [float(row["policy/ratio"]) for row in rows]
    assert abs(ratios[-1] - 1) > 1e-4
    other = last_checkpoint(tmp_path)
    assert any(float((value - last_checkpoint(recording)[name]).abs().max()) > 0 for name, value in other.items())


def test_what_was_not_recorded_cannot_be_replayed(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"engine=replay: .* has not recorded what is asked"):
        replay(tmp_path, recording, "seed=1")


def test_a_folder_without_rollouts_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("fit", "engine=replay", f"engine.path={tmp_path}", f"output_dir={tmp_path / 'run'}")) == 2
    assert f"engine.path={tmp_path} holds no run: its rollouts/ is missing" in capsys.readouterr().err
