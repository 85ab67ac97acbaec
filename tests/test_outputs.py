"""What a run leaves to look at."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from training import SMALL

from rlvr_lightning.callbacks.outputs import draw_curves, read_series
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.training.checkpoint_io import newest, read_state


def test_curves_of_a_run_without_any_advantage_are_drawn_without_a_warning(tmp_path: Path) -> None:
    """All rewards 0: every quadrant is empty, and a logarithmic axis has nothing to show."""
    folder = tmp_path / "logs"
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["epoch", "step", "reward/mean", "policy/quadrant_share/positive_rare", "policy/prob_hist/0.99"]
        )
        writer.writerows([[0, 1, 0.0, 0.0, 0.7], [1, 3, 0.0, 0.0, 0.8]])
    assert read_series(tmp_path)["policy/prob_hist/0.99"] == [(1, 0.7), (3, 0.8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = draw_curves(tmp_path)
    assert path is not None
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("monitor", ["val/avg_at_k", "reward/mean"])
def test_callbacks_of_lightning_may_watch_what_is_logged(monitor: str, tmp_path: Path) -> None:
    """And what they know is in the checkpoint, tensors of theirs too."""
    stopping = EarlyStopping(monitor, mode="max", min_delta=10, patience=1, check_on_train_epoch_end=True)
    overrides = ("conf=lp_reg", "trainer.max_epochs=4", "trainer.val_every_n_epochs=1", f"output_dir={tmp_path}")
    run = build_run(compose([*SMALL, *overrides]), [stopping])
    run.fit()
    # Nothing gets better by ten: the second epoch is the last.
    first, _ = [value for step, value in read_series(tmp_path)[monitor] if step]
    assert float(stopping.best_score) == pytest.approx(first)
    (held,) = [
        state
        for key, state in read_state(newest(tmp_path / "checkpoints"))["callbacks"].items()
        if key.startswith("EarlyStopping")
    ]
    assert held["wait_count"] == 1
    assert torch.equal(held["best_score"], stopping.best_score.cpu())
