"""How strongly regularizers pull at the tokens they choose, over the runs of a study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_lightning.study.runs import Ended, tenth
from rlvr_lightning.study.spec import Study

# How strongly a regularizer pulls at its tokens, over the policy gradient: at all their logits, and at the sampled token's.
FORCE, FORCE_SAMPLED = "policy/force/", "policy/force_sampled/"


@dataclass(frozen=True)
class Pull:
    """What a regularizer does to the tokens it chose, over what the policy gradient does to them (a ratio of mean sizes).

    Args:
        method: of the runs.
        regularizer: its name in them.
        early, late: of the first and the last tenth of the measurements; medians over the runs.
        sampled: at the sampled token's logit alone, over all measurements; a median over the runs.
    """

    method: str
    regularizer: str
    early: float
    late: float
    sampled: float


def pulls(study: Study, runs: Sequence[Ended]) -> list[Pull]:
    """Of every regularizer whose forces were measured, in the study's order."""
    found = []
    for method in study.methods:
        own = [run for run in runs if run.method == method]
        for name in sorted({name for run in own for name in run.beginning(FORCE)}):
            curves = [[value for _, value in run.beginning(FORCE).get(name, [])] for run in own]
            sampled = [[value for _, value in run.beginning(FORCE_SAMPLED).get(name, [])] for run in own]
            found.append(
                Pull(
                    method,
                    name,
                    _median_of_means([values[: tenth(values)] for values in curves]),
                    _median_of_means([values[-tenth(values) :] for values in curves]),
                    _median_of_means(sampled),
                )
            )
    return found


def _median_of_means(curves: Sequence[Sequence[float]]) -> float:
    means = [statistics.fmean(values) for values in curves if values]
    # A ratio to a pull of nothing is not logged.
    return statistics.median(means) if means else math.nan
