"""Do intervals hold what they say? A thousand evaluations of two models, simulated, the truth known exactly.

Problems are of kinds; a kind has a chance of being solved by each model. A cluster is made of hard or of easy kinds, and the
second model has a liking for easy ones, so that what it gains is alike within a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from rlvr_lightning.evaluation.statistics import Units, interval, p_value, paired_difference

REPETITIONS = 1000
# Chance of each model to solve a problem of each kind, and how many problems of an easy and of a hard cluster are of it.
SOLVED = np.array([[0.02, 0.30, 0.70, 0.95], [0.03, 0.34, 0.90, 0.98]])
SHARES = {"hard": np.array([0.60, 0.30, 0.08, 0.02]), "easy": np.array([0.05, 0.10, 0.60, 0.25])}
# Difference over all problems, clusters being hard or easy by the toss of a coin.
TRUTH = float((SOLVED[1] - SOLVED[0]) @ (SHARES["hard"] + SHARES["easy"]) / 2)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """One simulated: each model's score of each problem."""

    first: Floats
    second: Floats
    clusters: list[str] | None


def simulated(rng: np.random.Generator, units: int, samples: int, largest: int) -> Evaluation:
    """Clusters of 1 to `largest` problems, `samples` responses each."""
    sizes = rng.integers(1, largest, units, endpoint=True)
    cluster = np.repeat(np.arange(units), sizes)
    easy = rng.random(units) < 0.5
    bounds = np.where(easy[cluster, None], SHARES["easy"].cumsum(), SHARES["hard"].cumsum())
    kind = (rng.random(len(cluster))[:, None] > bounds).sum(1).clip(max=3)
    first, second = (rng.binomial(samples, chances[kind]) / samples for chances in SOLVED)
    return Evaluation(first, second, None if largest == 1 else [str(name) for name in cluster])


def covered(holds: list[bool]) -> float:
    assert len(holds) == REPETITIONS
    return sum(holds) / REPETITIONS


@pytest.mark.parametrize(
    ("units", "samples", "largest", "method"),
    [
        (30, 1, 1, "bayesian"),  # AIME
        pytest.param(40, 1, 1, "bayesian", marks=pytest.mark.slow),
        (30, 4, 1, "bootstrap"),
        (30, 64, 1, "bootstrap"),
        pytest.param(100, 4, 1, "bootstrap", marks=pytest.mark.slow),
        (30, 1, 5, "bootstrap"),  # clusters
        (60, 4, 8, "bootstrap"),
        pytest.param(150, 1, 3, "bootstrap", marks=pytest.mark.slow),
        (200, 1, 1, "normal"),
        (500, 4, 1, "normal"),  # MATH-500
        (220, 2, 5, "normal"),
    ],
)
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(
    units: int, samples: int, largest: int, method: str
) -> None:
    rng = np.random.default_rng((units, samples, largest))
    holds = []
    for _ in range(REPETITIONS):
        run = simulated(rng, units, samples, largest)
        found = interval(Units.of(run.second - run.first, run.clusters), "difference")
        # Among a thousand some differ nowhere.
        assert found.method in (method, "bayesian")
        holds.append(found.low <= TRUTH <= found.high)
    assert 0.93 <= covered(holds) <= 0.97


@pytest.mark.parametrize(("units", "samples", "largest"), [(30, 1, 1), (30, 16, 1), (40, 4, 6), (300, 1, 1)])
def test_the_interval_of_one_model_holds_the_truth_as_often_as_it_says(units: int, samples: int, largest: int) -> None:
    truth = float(SOLVED[0] @ (SHARES["hard"] + SHARES["easy"]) / 2)
    rng = np.random.default_rng((7, units, samples, largest))
    holds = []
    for _ in range(REPETITIONS):
        run = simulated(rng, units, samples, largest)
        found = interval(Units.of(run.first, run.clusters))
        holds.append(found.low <= truth <= found.high)
    assert 0.93 <= covered(holds) <= 0.97


def test_as_if_clusters_were_not_there_it_would_hold_too_seldom() -> None:
    rng = np.random.default_rng(11)
    truth = float(SOLVED[0] @ (SHARES["hard"] + SHARES["easy"]) / 2)
    holds = []
    for _ in range(REPETITIONS):
        run = simulated(rng, 60, 4, 8)
        found = interval(Units.of(run.first))
        holds.append(found.low <= truth <= found.high)
    assert covered(holds) < 0.85


@pytest.mark.parametrize(("units", "largest"), [(30, 1), (30, 5), (250, 1)])
def test_two_equal_models_are_told_apart_one_time_in_twenty(units: int, largest: int) -> None:
    rng = np.random.default_rng((13, units, largest))
    found = []
    for _ in range(REPETITIONS):
        run = simulated(rng, units, 4, largest)
        # Which of the two is which is decided by a coin: by problem, or for a whole cluster.
        names = np.arange(len(run.first)) if run.clusters is None else np.asarray(run.clusters, dtype=int)
        coin = rng.choice((-1.0, 1.0), units)[names]
        found.append(p_value(Units.of((run.second - run.first) * coin, run.clusters)) < 0.05)
    assert 0.03 <= covered(found) <= 0.07


def test_what_a_set_could_show_it_shows_four_times_in_five() -> None:
    rng = np.random.default_rng(17)
    one = [simulated(rng, 500, 4, 1) for _ in range(REPETITIONS)]
    reach = np.mean([paired_difference("", run.first, run.second).detectable for run in one])
    # The same models, the second better or worse so that the true difference is the one said to be found.
    found = [p_value(Units.of(run.second - run.first - TRUTH + reach)) < 0.05 for run in one]
    assert covered(found) == pytest.approx(0.8, abs=0.04)
