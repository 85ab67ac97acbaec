"""What a run leaves to look at."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from rlvr_lightning.callbacks.outputs import draw_curves, read_series


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
