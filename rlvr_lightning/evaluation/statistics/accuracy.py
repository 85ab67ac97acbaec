"""avg@k and pass@k of graded problems, with their errors; two sets of them compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.evaluation.metrics.at_k import pass_at_k
from rlvr_lightning.evaluation.statistics.intervals import interval
from rlvr_lightning.evaluation.statistics.paired import paired_difference
from rlvr_lightning.evaluation.statistics.results import Difference, Estimate
from rlvr_lightning.evaluation.statistics.units import Units
from rlvr_lightning.types import Outcomes


def accuracies(problems: Sequence[Outcomes], k: int, level: float = 0.95, seed: int = 0) -> tuple[Estimate, Estimate]:
    """avg@k and pass@k, the unbiased one of Chen et al. 2021 (arXiv 2107.03374, equation 1).

    Args:
        problems: each with at least k responses; one without a verdict is not right.
        k: responses one may submit; avg@k is over all responses there are.
        level: of the intervals.
        seed: of what is drawn for them.

    Raises:
        ConfigError: the level is no probability, or k below 1.
        DataError: there is no problem, or one has fewer than k verdicts.
    """
    if k < 1:
        raise ConfigError(f"k of avg@k and pass@k must be at least 1; got {k}")
    if not problems:
        raise DataError("there is no problem to measure on")
    for problem in problems:
        if len(problem.correct) < k:
            raise DataError(f"problem {problem.id}: avg@{k} needs {k} verdicts; there are {len(problem.correct)}")
    right = [sum(correct is True for correct in problem.correct) for problem in problems]
    counts = [len(problem.correct) for problem in problems]
    average = [correct / count for correct, count in zip(right, counts, strict=True)]
    passing = [float(pass_at_k(torch.tensor([c]), n, k)[0]) for c, n in zip(right, counts, strict=True)]
    clusters = [problem.cluster for problem in problems]

    def estimate(name: str, scores: list[float]) -> Estimate:
        units = Units.of(scores, clusters)
        found = interval(units, "share", level, seed)
        size = (units.num_problems, len(units))
        return Estimate(name, units.mean, units.standard_error, found.low, found.high, level, found.method, *size)

    return estimate(f"avg@{k}", average), estimate(f"pass@{k}", passing)


def compared(
    first: Sequence[Outcomes],
    second: Sequence[Outcomes],
    of: Literal["correct", "rewards"] = "correct",
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How much better the second is on the same problems, in whatever order they come.

    Args:
        first, second: of two models; the numbers of responses need not be the same.
        of: `correct` (a response without a verdict is not right) or `rewards` (it is left out).
        level: of the interval.
        seed: of what is drawn for it.

    Raises:
        ConfigError: the level is no probability.
        DataError: the problems are not the same, stand in other clusters, or have nothing to compare.
    """
    mine, theirs = _by_id(first), _by_id(second)
    lone = sorted(mine.keys() ^ theirs.keys())
    if lone or not mine:
        raise DataError(
            f"a paired comparison needs the same problems: {len(mine)} and {len(theirs)}, of which {len(lone)} stand in one "
            f"alone{': ' if lone else ''}{', '.join(lone[:3])}"
        )
    clusters = [problem.cluster for problem in mine.values()]
    for name, cluster in zip(mine, clusters, strict=True):
        if theirs[name].cluster != cluster:
            raise DataError(
                f"problem {name} is in cluster {cluster} of the first and {theirs[name].cluster} of the second"
            )
    before, after = ([_score(problems[name], of) for name in mine] for problems in (mine, theirs))
    kind: Literal["difference", "reward"] = "difference" if of == "correct" else "reward"
    return paired_difference(of, before, after, clusters, kind, level, seed)


def _by_id(problems: Sequence[Outcomes]) -> dict[str, Outcomes]:
    found = {problem.id: problem for problem in problems}
    if len(found) != len(problems):
        raise DataError(f"of {len(problems)} problems {len(problems) - len(found)} have the id of another one")
    return found


def _score(problem: Outcomes, of: Literal["correct", "rewards"]) -> float:
    if of == "correct":
        numbers = [float(correct is True) for correct in problem.correct]
    else:
        numbers = [reward for reward in problem.rewards if reward is not None]
    if not numbers:
        raise DataError(f"problem {problem.id} has no {of} to compare")
    return sum(numbers) / len(numbers)
