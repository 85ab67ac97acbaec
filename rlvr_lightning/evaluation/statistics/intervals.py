"""Intervals of a mean over problems that hold what they promise, for few problems too.

- From 200 independent units on, the normal one of the central limit theorem (Miller, arXiv 2411.00640), unless all are
  the same.
- Below, that one is too narrow (Bowyer, Aitchison, Ivanova, "Don't use the CLT in LLM evals with fewer than a few hundred
  datapoints", arXiv 2503.01747), and of width 0 where every answer was right. Where each problem gave one of the outcomes
  that can be (right or wrong; of a pair: won, lost, equal) the interval is Bayesian, the posterior of their probabilities
  under Jeffreys' prior: its frequentist coverage lies nearest to what it says (Brown, Cai, DasGupta 2001, "Interval
  Estimation for a Binomial Proportion").
- Means of several responses, graded rewards and clusters have no such likelihood: whole units are drawn anew (bootstrap),
  and the percentiles taken a little further out, since those of few units are as narrow as the normal interval is (Hesterberg
  2015, "What Teachers Should Know About the Bootstrap": the expanded percentile interval).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.evaluation.statistics.quantiles import STANDARD_NORMAL, beta_quantile, student_quantile
from rlvr_lightning.evaluation.statistics.units import Floats, Units

# Independent units from which on the normal interval is used.
MANY = 200
DRAWS = 10_000

Method = Literal["normal", "bayesian", "bootstrap"]
# What a problem's number is: a share of right responses in [0, 1], a difference of two in [-1, 1], anything.
Kind = Literal["share", "difference", "reward"]
LIMITS: dict[Kind, tuple[float, float]] = {
    "share": (0.0, 1.0),
    "difference": (-1.0, 1.0),
    "reward": (-math.inf, math.inf),
}


@dataclass(frozen=True)
class Interval:
    """Where the mean over all problems one could have asked lies.

    Args:
        low, high: its ends.
        method: how it was made.
    """

    low: float
    high: float
    method: Method


def interval(units: Units, kind: Kind = "share", level: float = 0.95, seed: int = 0) -> Interval:
    """The interval of a mean by the method that fits.

    Args:
        units: problems or clusters.
        kind: what their numbers can be.
        level: probability that it holds the truth, in (0, 1).
        seed: of what is drawn.

    Raises:
        ConfigError: the level is no probability.
        DataError: a single unit of rewards says nothing about others.
    """
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must be in (0, 1); got {level}")
    few = len(units) < MANY
    # All the same at whatever number: that is no proof that the next one will be.
    if kind != "reward" and (_is_all_the_same(units) or (few and _is_one_outcome_each(units))):
        low, high = _of_shares(units, level) if kind == "share" else _of_differences(units, level, seed)
        return Interval(low, high, "bayesian")
    if not few:
        reach = STANDARD_NORMAL.inv_cdf((1 + level) / 2) * units.standard_error
        low, high = LIMITS[kind]
        return Interval(max(units.mean - reach, low), min(units.mean + reach, high), "normal")
    if len(units) < 2:
        raise DataError("one independent unit (a problem or a cluster) has no standard error: evaluate several")
    tail = expanded_tail(len(units), level)
    low, high = np.quantile(resampled_means(units, seed), [tail, 1 - tail])
    return Interval(float(low), float(high), "bootstrap")


def expanded_tail(units: int, level: float) -> float:
    """Probability to leave out at each end, so that percentiles are as wide as Student's interval is (Hesterberg)."""
    student = student_quantile((1 + level) / 2, units - 1)
    return STANDARD_NORMAL.cdf(-math.sqrt(units / (units - 1)) * student)


def resampled_means(units: Units, seed: int) -> Floats:
    """Means over units drawn with replacement [draws]."""
    times = _times_drawn(len(units), seed)
    return np.asarray((times @ units.sums) / (times @ units.sizes))


@lru_cache(maxsize=4)
def _times_drawn(units: int, seed: int) -> Floats:
    """How often each unit is in each draw [draws, units]."""
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return drawn.astype(np.float64)


def _is_one_outcome_each(units: Units) -> bool:
    return bool((units.sizes == 1).all() and np.isin(units.sums, (-1.0, 0.0, 1.0)).all())


def _is_all_the_same(units: Units) -> bool:
    return bool(np.ptp(units.sums / units.sizes) == 0)


def _of_shares(units: Units, level: float) -> tuple[float, float]:
    """Beta(right + 1/2, wrong + 1/2); the end is 0 or 1 where nothing or everything was right (Brown et al.)."""
    right = float((units.sums / units.sizes).sum())
    wrong = len(units) - right
    low, high = (beta_quantile(p, right + 0.5, wrong + 0.5) for p in ((1 - level) / 2, (1 + level) / 2))
    return (low if right > 0 else 0.0), (high if wrong > 0 else 1.0)


def _of_differences(units: Units, level: float, seed: int) -> tuple[float, float]:
    """Of P(won) - P(lost), under Dirichlet(1/2, 1/2, 1/2, 1/2) over both right, won, lost, both wrong."""
    means = units.sums / units.sizes
    won, lost = float(means.clip(min=0).sum()), float((-means).clip(min=0).sum())
    drawn = np.random.default_rng(seed).dirichlet((won + 0.5, lost + 0.5, len(units) - won - lost + 1), size=DRAWS)
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
