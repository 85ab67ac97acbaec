"""Figures of a study, in the papers' form: a curve a method with a band over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlvr_lightning.study.pulls import FORCE
from rlvr_lightning.study.runs import ACCURACY, Ended, Points
from rlvr_lightning.study.spec import Study

# More lines than these no eye tells apart.
MOST_LINES = 10
ENTROPY = "policy/entropy"
HISTOGRAM = "policy/prob_hist/"
# Of the logged steps, the first and the last share that histograms are means over.
EARLY = 0.1


def draw_figures(study: Study, runs: Sequence[Ended], folder: Path) -> list[Path]:
    """Curves (accuracy, probe, entropy), forces, and histograms of how probable sampled tokens were; nothing in them depends on when."""
    panels = [("avg@k on held-out problems", ACCURACY, "linear"), ("entropy [nats]", ENTROPY, "linear")]
    if study.probe is not None:
        panels.insert(1, (f"probability of the {study.probe}", f"val/probe/{study.probe}", "log"))
    known = {series for _, series, _ in panels}
    panels += [(title, series, "linear") for title, series in study.also.items() if series not in known]
    names = [name for name in study.methods if any(run.method == name for run in runs)]
    made = []
    if study.shown:
        made.append(_curves(study, runs, study.shown, panels, folder / "shown.png"))
    # All methods in one figure already: none more.
    others = [] if set(names) <= set(study.shown) else names
    for number, start in enumerate(range(0, len(others), MOST_LINES), 1):
        shown = others[start : start + MOST_LINES]
        made.append(_curves(study, runs, shown, panels, folder / f"curves_{number}.png"))
    pulling = [name for name in names if any(run.method == name and run.beginning(FORCE) for run in runs)]
    if pulling:
        panel = ("a regularizer's pull over the policy gradient's", FORCE, "log")
        made.append(_curves(study, runs, pulling[:MOST_LINES], [panel], folder / "forces.png"))
    if any(run.beginning(HISTOGRAM) for run in runs):
        made.append(_histograms(study, runs, names[:MOST_LINES], folder / "probabilities.png"))
    return made


def _curves(
    study: Study, runs: Sequence[Ended], methods: Sequence[str], panels: Sequence[tuple[str, str, str]], path: Path
) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, series, scale) in zip(axes, panels, strict=True):
        for place, method in enumerate(methods):
            curves = [points for run in runs if run.method == method for points in _lines(run, series)]
            if not curves:
                continue
            steps, values = side_by_side(curves)
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
            color = f"C{place}"
            axis.plot(steps, middle, color=color, label=f"{study.title_of(method)} ({len(curves)})", linewidth=1.4)
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="optimizer step")
        if scale == "log":
            axis.set_yscale("log", nonpositive="mask")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="x-small")
    return _save(figure, path)


def side_by_side(curves: Sequence[Points]) -> tuple[list[int], np.ndarray]:
    """Several runs' values at the same steps.

    A step of which one run has nothing to tell, such as the entropy where all groups were dropped, lies on the line between its
    neighbours.

    Args:
        curves: a run each, none of them empty.

    Returns:
        The steps that any run has, as far as all of them reach, and the values, `(runs, steps)`.
    """
    first, last = max(points[0][0] for points in curves), min(points[-1][0] for points in curves)
    steps = sorted({step for points in curves for step, _ in points if first <= step <= last})
    at = [([step for step, _ in points], [value for _, value in points]) for points in curves]
    return steps, np.array([np.interp(steps, known, values) for known, values in at])


def _lines(run: Ended, series: str) -> list[Points]:
    """The series of that name; of all below it, where it ends in a slash."""
    if series.endswith("/"):
        return list(run.beginning(series).values())
    return [run.series[series]] if series in run.series else []


def _histograms(study: Study, runs: Sequence[Ended], methods: Sequence[str], path: Path) -> Path:
    from matplotlib.figure import Figure

    lowers = sorted({float(name) for run in runs for name in run.beginning(HISTOGRAM)})
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    for axis, title in zip(figure.subplots(1, 2), ("early", "late"), strict=True):
        for place, method in enumerate(methods):
            shares = [_share(run, lowers, late=title == "late") for run in runs if run.method == method]
            heights = np.mean(shares, axis=0)
            axis.plot(
                range(len(lowers)), heights, color=f"C{place}", marker="o", markersize=3, label=study.title_of(method)
            )
        axis.set(title=f"sampled tokens by probability, {title}", xlabel="probability from", ylabel="share of tokens")
        axis.set_xticks(range(len(lowers)), [f"{lower:g}" for lower in lowers], rotation=45)
        axis.set_yscale("log", nonpositive="mask")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    return _save(figure, path)


def _share(run: Ended, lowers: Sequence[float], *, late: bool) -> list[float]:
    shares = []
    for lower in lowers:
        values = [value for _, value in run.series.get(f"{HISTOGRAM}{lower:g}", [])]
        few = max(1, round(EARLY * len(values)))
        shares.append(float(np.mean(values[-few:] if late else values[:few])) if values else 0.0)
    return shares


def _save(figure: object, path: Path) -> Path:
    # Without the version of the library that drew it: the same numbers are the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    return path
