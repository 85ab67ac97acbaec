"""What a run leaves behind besides checkpoints and logs: its configuration, the versions of everything, curves."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

import rlvr_lightning
from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.rollout.files import write_whole

PACKAGES = ("lightning", "torch", "transformers", "vllm", "hydra-core", "torchmetrics", "peft", "math-verify")
# Title, the names that belong here, unit, scale.
PANELS = (
    ("reward", ("reward/",), "reward", "linear"),
    ("accuracy", ("rollout/accuracy", "val/avg_at_k", "val/pass_at_k"), "probability", "linear"),
    ("probes", ("val/probe/",), "probability", "log"),
    ("styles of responses", ("val/style_share/", "val/style_accuracy/"), "share", "linear"),
    ("response length", ("rollout/response_tokens",), "tokens", "linear"),
    ("entropy", ("policy/entropy/",), "nats", "linear"),
    ("clip fraction", ("policy/clip_frac/",), "share of tokens", "linear"),
    ("KL", ("policy/kl_ref/", "policy/kl_old/"), "nats", "linear"),
    ("entropy flow", ("policy/quadrant_flow/", "policy/entropy_flow"), "nats a unit step", "linear"),
    ("quadrants", ("policy/quadrant_share/",), "share of tokens", "log"),
    ("sampled tokens by probability (lower edge)", ("policy/prob_hist/",), "share of tokens", "log"),
)
# Lines a legend has room for inside a panel, with whole names.
MANY = 8


class ProvenanceCallback(Callback):
    """Keeps in `config.yaml` what is in force, in `config_history/` what was before it was changed on resuming, and
    writes `versions.json`.

    Args:
        folder: the output folder.
        config: the composed configuration as YAML.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.folder, self.config = folder, config

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `versions.json`, and the configuration of a run that begins: stopped from here on, it can be resumed."""
        if trainer.is_global_zero:
            write_whole(self.folder / "versions.json", (json.dumps(versions(), indent=2) + "\n").encode())
            if not (self.folder / "config.yaml").exists():
                write_whole(self.folder / "config.yaml", self.config.encode())

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Training goes on under another configuration than before: keep that one with the steps it was in force."""
        path = self.folder / "config.yaml"
        if not trainer.is_global_zero or _settings(path.read_text()) == _settings(self.config):
            return
        if pl_module.policy_version > 0:
            until = self.folder / "config_history" / f"until_step_{pl_module.policy_version:08}.yaml"
            # What was in force for steps that a kill has undone is not history.
            if not until.exists():
                write_whole(until, path.read_bytes())
        write_whole(path, self.config.encode())


def _settings(config: str) -> Any:
    """What decides how a run goes on, not where it was begun."""
    held = OmegaConf.to_container(OmegaConf.create(config))
    assert isinstance(held, dict)
    return {key: value for key, value in held.items() if key not in ("resume", "output_dir")}


def versions() -> dict[str, str]:
    """The version of this package, of what it runs on, and the commit where there is one."""
    found = {"rlvr_lightning": rlvr_lightning.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        commit = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        found["commit"] = commit.stdout.strip() or "none"
    return found


class CurvesCallback(Callback):
    """Draws `curves.png` from the table of metrics at the end of a run.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what the loggers have written."""
        if trainer.is_global_zero:
            draw_curves(self.folder)


def read_series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged series as (optimizer steps taken, value), over all sessions of the run."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in read_table(folder / "logs" / "metrics.csv"):
        for name, value in row.items():
            if name not in ("step", "epoch"):
                series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series


def draw_curves(folder: Path) -> Path | None:
    """The panels over the optimizer steps; None where nothing was logged."""
    from matplotlib.figure import Figure

    series = read_series(folder)
    panels = [
        (title, unit, scale, names)
        for title, prefixes, unit, scale in PANELS
        if (names := [name for name in sorted(series) if name.startswith(prefixes)])
    ]
    if not panels:
        return None
    rows = (len(panels) + 2) // 3
    figure = Figure(figsize=(14, 3.6 * rows), layout="constrained")
    for index, (title, unit, scale, names) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, 3, index)
        for name in names:
            steps, values = zip(*series[name], strict=True)
            label = name.rsplit("/", 1)[-1] if len(names) > MANY else name
            axes.plot(steps, values, label=label, marker="o" if len(steps) < 15 else None, linewidth=1.2)
        axes.set(title=title, xlabel="optimizer step", ylabel=unit)
        # A logarithmic axis needs something above 0 to show.
        if scale == "log" and any(value > 0 for name in names for _, value in series[name]):
            axes.set_yscale(scale, nonpositive="mask")
        axes.grid(alpha=0.3)
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(names) > MANY else {}
        axes.legend(fontsize="small", **beside)
    path = folder / "curves.png"
    figure.savefig(path, dpi=90)
    return path
