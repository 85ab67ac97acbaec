"""A sweep is several runs, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from training import SMALL, widest_difference

from rlvr_lightning.cli.main import main


def test_every_run_of_a_sweep_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [item for item in SMALL if not item.startswith("trainer.max_epochs")]
    assert (
        main(
            ("fit", "-m", "conf=grpo,lp_reg", "seed=0,1", *small, "rollout.prompts_per_step=4", "trainer.max_epochs=1")
        )
        == 0
    )
    (sweep,) = (tmp_path / "outputs").iterdir()
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["0_grpo_seed_0", "1_grpo_seed_1", "2_lp_reg_seed_0", "3_lp_reg_seed_1"]
    assert OmegaConf.load(runs[3] / "config.yaml").seed == 1
    assert widest_difference(runs[0], runs[1]) > 0


def test_a_mistake_in_one_run_of_a_sweep_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (
        "fit",
        "-m",
        "conf=archer",
        "partitioner.quantile=0.8,1.5",
        *SMALL,
        "rollout.prompts_per_step=4",
        "trainer.max_epochs=0",
    )
    assert main(arguments) == 2
    assert "error: EntropyQuantile.quantile must be in (0, 1); got 1.5" in capsys.readouterr().err
