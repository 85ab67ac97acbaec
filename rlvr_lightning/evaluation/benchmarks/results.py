"""What a policy came to on a benchmark, and on several of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlvr_lightning.evaluation.statistics import Estimate, accuracies
from rlvr_lightning.evaluation.statistics.quantiles import STANDARD_NORMAL
from rlvr_lightning.types import VERDICT_KINDS, Outcomes, VerdictKind


@dataclass(frozen=True)
class Measured:
    """A policy on a benchmark.

    Args:
        name: of the benchmark.
        problems: in the benchmark's order.
        average: avg@k over all responses.
        passing: pass@k.
        kinds: how many responses were judged how.
        tokens: of a response, on average.
        truncated: share of responses cut at their longest.
    """

    name: str
    problems: Sequence[Outcomes]
    average: Estimate
    passing: Estimate
    kinds: Mapping[VerdictKind, int]
    tokens: float
    truncated: float

    @classmethod
    def of(cls, name: str, records: Sequence[Mapping[str, Any]], problems: Sequence[Outcomes], pass_k: int) -> Measured:
        """Work them out.

        Args:
            name: of the benchmark.
            records: of all responses.
            problems: what became of each problem.
            pass_k: k of pass@k; avg@k is over all responses.
        """
        average, _ = accuracies(problems, len(problems[0].correct))
        _, passing = accuracies(problems, pass_k)
        kinds = {kind: sum(record["verdict"] == kind for record in records) for kind in VERDICT_KINDS}
        return cls(
            name,
            problems,
            replace(average, name=f"{name} {average.name}"),
            replace(passing, name=f"{name} {passing.name}"),
            kinds,
            sum(record["tokens"] for record in records) / len(records),
            sum(record["finish_reason"] == "length" for record in records) / len(records),
        )

    @property
    def estimates(self) -> list[Estimate]:
        """What a table shows: of one response a problem pass@1 is the average itself."""
        once = len(self.problems[0].correct) == 1
        return [self.average] if once else [self.average, self.passing]

    def record(self) -> dict[str, Any]:
        """Everything known of it, but the problems one by one."""
        return {
            "benchmark": self.name,
            "average": self.average.record(),
            "pass": self.passing.record(),
            "verdicts": dict(self.kinds),
            "response_tokens": self.tokens,
            "truncated": self.truncated,
        }


def mean_of(measured: Sequence[Measured]) -> Estimate:
    """The mean over benchmarks of their averages, each counting the same, as papers have it.

    The benchmarks are what they are and no sample of others: the error comes of their problems alone, which are
    independent of each other's. The interval is the normal one, within what a share can be.
    """
    averages = [one.average for one in measured]
    value = sum(average.value for average in averages) / len(averages)
    error = math.sqrt(sum(average.standard_error**2 for average in averages)) / len(averages)
    level = averages[0].level
    reach = STANDARD_NORMAL.inv_cdf(0.5 + level / 2) * error
    problems, units = (sum(getattr(average, size) for average in averages) for size in ("num_problems", "num_units"))
    low, high = max(0.0, value - reach), min(1.0, value + reach)
    return Estimate("mean of averages", value, error, low, high, level, "normal", problems, units)
