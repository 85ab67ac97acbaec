"""Exact statements from few runs: shares, paired differences, many comparisons at once."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rlvr_lightning.evaluation.statistics.quantiles import beta_quantile

K = TypeVar("K", bound=Hashable)
# Pairs of which all changes of signs are gone through: 65,536.
MOST_PAIRS = 16


def exact_share(successes: int, number: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a probability from `number` independent trials (Clopper and Pearson, Biometrika 26, 1934): it holds the truth at
    least as often as it says.
    """
    assert 0 <= successes <= number
    assert number > 0
    tail = (1 - level) / 2
    low = beta_quantile(tail, successes, number - successes + 1) if successes else 0.0
    high = beta_quantile(1 - tail, successes + 1, number - successes) if successes < number else 1.0
    return low, high


def sign_flip_p(differences: Sequence[float]) -> float:
    """How often a mean as far from 0 comes of pairs that are exchangeable: all changes of their signs (Fisher's randomization test,
    two-sided, exact). With n pairs it is at least 2^(1 - n).
    """
    values = np.asarray(differences, dtype=np.float64)
    assert 0 < len(values) <= MOST_PAIRS
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
    # Sums of the same numbers in another order differ in their last bit.
    return float((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean())


def least_p(pairs: int) -> float:
    """The smallest probability `sign_flip_p` can find of so many pairs."""
    return 2.0 ** (1 - min(pairs, MOST_PAIRS))


def within_reach(least: Mapping[K, float], level: float) -> set[K]:
    """Comparisons that could be told from chance at all among so many (Tarone, Biometrics 46, 1990): the others can raise no false
    alarm, and need not be paid for. It depends on nothing that was observed.

    Args:
        least: the smallest probability each can reach.
        level: at which one is claimed.
    """
    for number in range(1, len(least) + 1):
        reaching = {name for name, value in least.items() if value * number <= level}
        if len(reaching) <= number:
            return reaching
    return set(least)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """The same corrected for their number (Holm, Scand. J. Statist. 6, 1979): each may be read as if it were the only one."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}
