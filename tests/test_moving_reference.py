"""A reference that follows the policy: a weighted mean of the policies there were, kept in checkpoints, the same over ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from training import SMALL, fit, last_checkpoint, widest_difference

from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import Run, build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError

RATE = 0.3
# Two optimizer steps an epoch.
PULLED = (
    "conf=grpo",
    "constraint.kl_coef=0.5",
    "rollout.prompts_per_step=4",
    "optim.lr=1e-3",
    f"model.reference_rate={RATE}",
)


class Policies(Callback):
    """All weights in a row before each optimizer step; stops the run before the given one."""

    def __init__(self, stop_before: int = -1) -> None:
        self.stop_before = stop_before
        self.seen: list[Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.policy_version == self.stop_before:
            raise KeyboardInterrupt
        self.seen.append(flat(pl_module.policy))


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([weight.detach().double().flatten() for weight in model.parameters()])


def watched(folder: Path, policies: Policies, *overrides: str) -> Run:
    run = build_run(compose([*SMALL, *PULLED, *overrides, f"output_dir={folder}"]), [policies])
    run.fit()
    return run


def test_it_is_a_weighted_mean_of_the_policies(tmp_path: Path) -> None:
    policies = Policies()
    run = watched(tmp_path, policies)
    assert len(policies.seen) == 4
    assert run.module.reference.model is not None
    expected = policies.seen[0]
    for after in (*policies.seen[1:], flat(run.module.policy)):
        expected = (1 - RATE) * expected + RATE * after
    found = flat(run.module.reference.model)
    assert (found - policies.seen[0]).abs().max() > 1e-4
    assert (found - flat(run.module.policy)).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_what_is_scored_is_where_it_has_gone(tmp_path: Path) -> None:
    moving = fit(tmp_path / "moving", *PULLED, "trainer.max_epochs=3")
    frozen = fit(tmp_path / "frozen", *PULLED, "trainer.max_epochs=3", "model.reference_rate=0")
    # It is nearer to the policy than where both began.
    distances = [run.module.epoch_metrics["policy/kl_ref/all"] for run in (moving, frozen)]
    assert 0 < distances[0] < 0.8 * distances[1]


def test_a_run_stopped_within_an_epoch_goes_on_with_the_same_reference(tmp_path: Path) -> None:
    watched(tmp_path / "whole", Policies(), "trainer.max_epochs=3")
    assert any(name.startswith("reference.") for name in last_checkpoint(tmp_path / "whole"))
    with pytest.raises(SystemExit):  # how Lightning ends on Ctrl-C
        watched(tmp_path / "cut", Policies(stop_before=3), "trainer.max_epochs=3")
    assert main(("fit", f"resume={tmp_path / 'cut'}")) == 0
    assert widest_difference(tmp_path / "whole", tmp_path / "cut") == 0


def test_a_frozen_one_is_in_no_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, *PULLED, "model.reference_rate=0", "trainer.max_epochs=1")
    assert not any(name.startswith("reference.") for name in last_checkpoint(tmp_path))


@pytest.mark.slow
def test_over_two_ranks_it_is_that_of_one(tmp_path: Path) -> None:
    exact = ("optim.lr=1e-4", "trainer.max_epochs=1")
    fit(tmp_path / "one", *PULLED, *exact)
    sharded = ("strategy=fsdp", "trainer.devices=2")
    arguments = [*SMALL, *PULLED, *exact, *sharded, f"output_dir={tmp_path / 'two'}"]
    subprocess.run([sys.executable, "-m", "rlvr_lightning", "fit", *arguments], check=True, timeout=300)
    one, two = last_checkpoint(tmp_path / "one"), last_checkpoint(tmp_path / "two")
    names = [name for name in one if name.startswith("reference.")]
    assert names
    for name in names:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("conf=grpo",),
            "model.reference_rate=0.3 moves the reference, which no component needs: set it to 0, or add one that does",
        ),
        (
            ("conf=grpo", "constraint.kl_coef=0.1", "peft=lora"),
            "model.reference_rate=0.3 moves the reference, which with adapters is the model they are added to: set it to 0",
        ),
        (
            ("conf=grpo", "constraint.kl_coef=0.1", "model.reference_rate=1"),
            "model.reference_rate must be in [0, 1); got 1",
        ),
    ],
)
def test_what_cannot_move_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_run(
            compose(
                [
                    *SMALL,
                    "rollout.prompts_per_step=4",
                    f"model.reference_rate={RATE}",
                    *overrides,
                    f"output_dir={tmp_path}",
                ]
            )
        )
    assert str(caught.value) == message
