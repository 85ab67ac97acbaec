"""Two models on the same problems: the difference of each problem is what is measured.

Problems that are hard for one model are hard for the other, and in the difference that cancels: it is known better than
either mean (Miller, arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rlvr_lightning.evaluation.statistics.intervals import DRAWS, MANY, Kind, interval
from rlvr_lightning.evaluation.statistics.quantiles import STANDARD_NORMAL
from rlvr_lightning.evaluation.statistics.results import Difference
from rlvr_lightning.evaluation.statistics.units import Floats, Units

# Of the smallest difference a set could show: a test at 5 %, passed four times in five.
POWER = 0.8
SIGNIFICANCE = 0.05


def paired_difference(
    name: str,
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    clusters: Sequence[str | None] | None = None,
    kind: Kind = "difference",
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How much better the second is than the first.

    Args:
        name: of what is compared.
        first, second: score of each problem, in the same order.
        clusters: name of each problem's; None for one on its own.
        kind: `difference` of shares in [0, 1], or `reward` for numbers of any size.
        level: of the interval.
        seed: of what is drawn.

    Raises:
        ConfigError: the level is no probability.
        DataError: a single unit of rewards says nothing about others.
    """
    one, other = (np.asarray(scores, dtype=np.float64) for scores in (first, second))
    assert one.shape == other.shape
    units = Units.of(other - one, clusters)
    found = interval(units, kind, level, seed)
    return Difference(
        name=name,
        first=float(one.mean()),
        second=float(other.mean()),
        value=units.mean,
        standard_error=units.standard_error,
        low=found.low,
        high=found.high,
        level=level,
        method=found.method,
        p_value=p_value(units, seed),
        detectable=detectable(units.standard_error),
        correlation=_correlation(one, other),
        num_problems=units.num_problems,
        num_units=len(units),
    )


def detectable(standard_error: float, significance: float = SIGNIFICANCE, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test finds with this power: (z_{1 - a/2} + z_power) times the standard error
    of the difference, which the correlation of the two makes small (Miller's power analysis).

    nan where all differences are the same: such a set does not say how much they vary.
    """
    if not standard_error > 0:
        return float("nan")
    reach = STANDARD_NORMAL.inv_cdf(1 - significance / 2) + STANDARD_NORMAL.inv_cdf(power)
    return reach * standard_error


def p_value(units: Units, seed: int = 0) -> float:
    """How often a mean as far from nothing comes of two models that are equally good; two-sided.

    From 200 units on by the normal distribution; below by chance's own hand: were the models exchangeable, each unit's
    difference could as well have had the other sign (Fisher's randomization test, 10,000 seeded draws; of right and
    wrong alone it is McNemar's exact test).
    """
    if len(units) >= MANY:
        error = units.standard_error
        if error == 0:
            return float(units.mean == 0)
        return math.erfc(abs(units.mean) / error / math.sqrt(2))
    sums = np.abs(_signs(len(units), seed) @ units.sums)
    # Sums of the same numbers in another order differ in their last bit.
    as_far = int((sums >= abs(units.sums.sum()) - 1e-9).sum())
    return (1 + as_far) / (1 + DRAWS)


@lru_cache(maxsize=4)
def _signs(units: int, seed: int) -> Floats:
    return np.random.default_rng(seed).choice((-1.0, 1.0), size=(DRAWS, units))


def _correlation(first: Floats, second: Floats) -> float:
    """Pearson's; nan where one of the two does not vary."""
    one, other = first - first.mean(), second - second.mean()
    size = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / size if size > 0 else float("nan")
