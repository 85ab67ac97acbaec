"""What the runs of a study have written, and what it comes to for each method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rlvr_lightning.callbacks.outputs import read_series
from rlvr_lightning.errors import ConfigError, nearest
from rlvr_lightning.evaluation.statistics.exact import MOST_PAIRS, exact_share, holm, least_p, sign_flip_p, within_reach
from rlvr_lightning.study.spec import COMPARED, Study

Points = list[tuple[int, float]]
ACCURACY, ANY = "val/avg_at_k", "val/pass_at_k"
# A difference is claimed below this, corrected.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Ended:
    """A run that came to its end.

    Args:
        method: its name.
        seed: of the run.
        series: everything logged, as (optimizer steps taken, value).
    """

    method: str
    seed: int
    series: Mapping[str, Points]

    def last(self, name: str) -> float | None:
        """The last value of a series; None where there is none."""
        points = self.series.get(name)
        return points[-1][1] if points else None

    def late(self, name: str) -> float | None:
        """A series' mean over the last tenth of its points; None where there is none."""
        values = [value for _, value in self.series.get(name, [])]
        return statistics.fmean(values[-tenth(values) :]) if values else None

    def beginning(self, prefix: str) -> dict[str, Points]:
        """Series right below a name, by what follows it."""
        below = {name.removeprefix(prefix): points for name, points in self.series.items() if name.startswith(prefix)}
        return {rest: points for rest, points in sorted(below.items()) if "/" not in rest}

    @property
    def accuracy(self) -> float:
        """avg@k at the end."""
        return self.series[ACCURACY][-1][1]

    @property
    def area(self) -> float:
        """avg@k over the steps, in the mean: the area under its curve over its width (trapezoids), from the first measurement after
        a step on, if there is one: what was before is the same for every method."""
        points = [(step, value) for step, value in self.series[ACCURACY] if step] or self.series[ACCURACY]
        if len(points) == 1:
            return points[0][1]
        return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(points)) / (
            points[-1][0] - points[0][0]
        )


def tenth(values: Sequence[float]) -> int:
    """How many values are a tenth of them; at least one."""
    return max(1, round(len(values) / 10))


def read_runs(study: Study, folder: Path) -> list[Ended]:
    """Every finished run.

    Raises:
        ConfigError: what the study compares by besides avg@k was logged by none of them.
    """
    runs = [Ended(job.method, job.seed, read_series(job.folder)) for job in study.jobs(folder) if job.finished]
    logged = sorted({name for run in runs for name in run.series})
    for title, series in study.also.items():
        if runs and series not in logged:
            raise ConfigError(f"study.also.{title}={series} was logged by no run; {nearest(series, logged)}")
    return runs


@dataclass(frozen=True)
class Summary:
    """What a method came to.

    Args:
        method: its name.
        seeds: of its runs.
        accuracy, spread: mean avg@k at the end, and its standard deviation over the runs (nan for one run).
        any_right: mean pass@k at the end.
        area: mean of avg@k over the steps.
        escaped: runs whose last avg@k is above the study's `success`.
        share: the interval of their probability (95 %, Clopper and Pearson).
        probe: median of the probe at the end, or None.
        also: means over the runs of the study's further numbers, by title; nan where no run has one.
    """

    method: str
    seeds: Sequence[int]
    accuracy: float
    spread: float
    any_right: float
    area: float
    escaped: int
    share: tuple[float, float]
    probe: float | None
    also: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, over equal seeds.

    Args:
        method: its name.
        of: what is compared: avg@k at the end, or one of the study's further numbers.
        pairs: seeds that both have.
        difference: in the mean.
        p_value: of the exact randomization test; nan without a pair.
        corrected: the same, for as many comparisons as could be told from chance (Tarone, Holm); nan where so few pairs could not.
    """

    method: str
    of: str
    pairs: int
    difference: float
    p_value: float
    corrected: float

    @property
    def claimed(self) -> bool:
        """Whether the difference may be called one."""
        return self.corrected < SIGNIFICANCE


def summaries(study: Study, runs: Sequence[Ended]) -> list[Summary]:
    """Of every method with a finished run, in the study's order."""
    found = []
    for method in study.methods:
        own = sorted((run for run in runs if run.method == method), key=lambda run: run.seed)
        if not own:
            continue
        accuracies = [run.accuracy for run in own]
        escaped = sum(accuracy > study.success for accuracy in accuracies)
        probes = [value for run in own if study.probe and (value := run.last(f"val/probe/{study.probe}")) is not None]
        found.append(
            Summary(
                method,
                [run.seed for run in own],
                statistics.fmean(accuracies),
                statistics.stdev(accuracies) if len(own) > 1 else float("nan"),
                statistics.fmean(run.series[ANY][-1][1] for run in own),
                statistics.fmean(run.area for run in own),
                escaped,
                exact_share(escaped, len(own)),
                statistics.median(probes) if probes else None,
                {title: _mean([run.late(series) for run in own]) for title, series in study.also.items()},
            )
        )
    return found


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def comparisons(study: Study, runs: Sequence[Ended]) -> list[Comparison]:
    """Every other method against the baseline, over the seeds both have: by avg@k, then by the study's further numbers; all of them
    are one family of comparisons."""
    outcomes = {COMPARED: {(run.method, run.seed): run.accuracy for run in runs}}
    for title, series in study.also.items():
        outcomes[title] = {(run.method, run.seed): value for run in runs if (value := run.late(series)) is not None}
    differences = {
        (method, title): paired
        for title, ends in outcomes.items()
        for method in study.methods
        if method != study.baseline and (paired := _paired(ends, method, study.baseline))
    }
    p_values = {key: sign_flip_p(paired) for key, paired in differences.items()}
    family = within_reach({key: least_p(len(paired)) for key, paired in differences.items()}, SIGNIFICANCE)
    corrected = holm({key: value for key, value in p_values.items() if key in family})
    return [
        Comparison(*key, len(paired), statistics.fmean(paired), p_values[key], corrected.get(key, math.nan))
        for key, paired in differences.items()
    ]


def _paired(ends: Mapping[tuple[str, int], float], method: str, baseline: str) -> list[float]:
    seeds = sorted(seed for name, seed in ends if name == method and (baseline, seed) in ends)
    return [ends[method, seed] - ends[baseline, seed] for seed in seeds[:MOST_PAIRS]]
