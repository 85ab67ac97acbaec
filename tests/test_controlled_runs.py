"""Whole runs with a controller: it moves once a step, survives resuming, and has the reference loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from test_controllers import follow
from training import SMALL, fit, widest_difference

from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import Run, build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.derived import DerivedNumbers
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.controllers.target import Target
from rlvr_lightning.training.checkpoint_io import newest, read_state

# Two optimizer steps an epoch, each of several micro-batches of uneven size.
TWO_STEPS = ("conf=entropy_bonus", "rollout.prompts_per_step=4", "trainer.micro_batch_size=5")
PI = (*TWO_STEPS, "controller=target", "controller.drives=regularizer.entropy_bonus.coef")


class Recorder(Callback):
    """What the driver measured and set at each step; stops the run before the given one."""

    def __init__(self, stop_before: int = -1) -> None:
        self.stop_before = stop_before
        self.entropies: list[float] = []
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.policy_version == self.stop_before:
            raise KeyboardInterrupt
        self.values.append(pl_module.objective.regularizers["entropy_bonus"].coef)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.entropies.append(pl_module.driver.entropy)


def recorded(folder: Path, recorder: Recorder, *overrides: str) -> Run:
    run = build_run(compose([*SMALL, *overrides, f"output_dir={folder}"]), [recorder])
    run.fit()
    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder, Run]:
    folder, recorder = tmp_path_factory.mktemp("controlled") / "run", Recorder()
    return folder, recorder, recorded(folder, recorder, *PI, "trainer.max_epochs=4")


def test_in_a_run_the_setting_moves_once_a_step(unbroken: tuple[Path, Recorder, Run], tmp_path: Path) -> None:
    folder, recorder, run = unbroken
    assert len(recorder.values) == len(set(recorder.values)) == 8
    expected = follow(Target("regularizer.entropy_bonus.coef"), recorder.entropies, configured=0.001)
    assert recorder.values == expected[:-1]
    logged = run.module.epoch_metrics
    assert logged["controller/regularizer.entropy_bonus.coef"] == expected[-1]
    assert logged["controller/entropy"] == recorder.entropies[-1]
    # Steps of different lengths: the epoch's mean lies between its steps' entropies.
    assert min(recorder.entropies[-2:]) < logged["policy/entropy/all"] < max(recorder.entropies[-2:])
    # It changes the run.
    fit(tmp_path, *TWO_STEPS, "controller=none", "trainer.max_epochs=4")
    assert widest_difference(folder, tmp_path) > 1e-5


def controller_state(folder: Path) -> Any:
    return read_state(newest(folder / "checkpoints"))["module"]["rlvr"]["controller"]


def test_a_resumed_run_with_a_controller_ends_where_an_unbroken_one_does(
    unbroken: tuple[Path, Recorder, Run], tmp_path: Path
) -> None:
    folder = unbroken[0]
    fit(tmp_path, *PI)
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=4")) == 0
    assert widest_difference(folder, tmp_path) == 0
    assert controller_state(tmp_path) == controller_state(folder)
    assert controller_state(folder)["state"]["integral"] != 0


def test_a_run_stopped_within_an_epoch_goes_on_with_its_schedule(tmp_path: Path) -> None:
    swings = (
        *TWO_STEPS,
        "controller=oscillating_decay",
        "controller.drives=regularizer.entropy_bonus.coef",
        "controller.low_share=0.98",
        "seed=1",  # its entropy falls and rises
        "controller.least=0.0",
        "controller.most=0.05",
        "trainer.max_epochs=3",
    )
    whole = Recorder()
    recorded(tmp_path / "whole", whole, *swings)
    assert set(whole.values) == {0.0, 0.05}
    with pytest.raises(SystemExit):  # how Lightning ends on Ctrl-C
        recorded(tmp_path / "cut", Recorder(stop_before=3), *swings)
    assert main(("fit", f"resume={tmp_path / 'cut'}")) == 0
    assert widest_difference(tmp_path / "whole", tmp_path / "cut") == 0
    assert controller_state(tmp_path / "cut") == controller_state(tmp_path / "whole")


def test_the_reference_is_loaded_for_a_coefficient_that_begins_at_nothing(tmp_path: Path) -> None:
    kl = ("controller=target", "controller.drives=constraint.kl_coef", "controller.direction=-1")
    run = fit(tmp_path, "conf=grpo", "rollout.prompts_per_step=4", *kl, "controller.target=0.0", "trainer.max_epochs=1")
    assert run.module.reference.model is not None
    assert all(row.ref_logprobs is not None for step in run.data.steps for row in step)
    assert run.module.objective.constraint.kl_coef > 0  # type: ignore[attr-defined]
    assert run.module.epoch_metrics["policy/loss/kl"] >= 0


def test_derived_numbers_name_what_is_driven() -> None:
    assert "controller" not in dict(DerivedNumbers.of(compose(["conf=grpo"])).rows)
    rows = dict(DerivedNumbers.of(compose(["conf=archer_controlled"])).rows)
    assert rows["controller"] == "Target drives constraint.clip_high.reasoning"
    with pytest.raises(ConfigError) as caught:
        DerivedNumbers.of(compose(["controller=target"]))
    assert str(caught.value) == "controller.drives must be given: controller.drives=..."
