"""What an evaluation comes to: numbers with their errors, for the screen, for programs, for reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from rich.table import Table

from rlvr_lightning.evaluation.statistics.intervals import Method

# Columns of words; all others are numbers.
WORDS = ("", "method", "source")


@runtime_checkable
class Result(Protocol):
    """A number with its error."""

    def cells(self) -> dict[str, str]:
        """What a table shows of it, by column."""
        ...

    def record(self) -> dict[str, Any]:
        """Everything known of it, as JSON takes it."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A mean over problems.

    Args:
        name: of what is measured (`avg@8`).
        value: the mean.
        standard_error: of it, over problems or clusters; nan of a single one.
        low, high: ends of its interval.
        level: probability that the interval holds the truth.
        method: how it was made.
        num_problems: measured on.
        num_units: independent of each other: clusters, or problems.
    """

    name: str
    value: float
    standard_error: float
    low: float
    high: float
    level: float
    method: Method
    num_problems: int
    num_units: int

    def cells(self) -> dict[str, str]:
        """What a table shows of it, by column."""
        return {
            "": self.name,
            "accuracy": _number(self.value),
            "standard error": _number(self.standard_error),
            f"{self.level:.0%} interval": _between(self.low, self.high),
            "problems": _count(self.num_problems, self.num_units),
            "method": self.method,
        }

    def record(self) -> dict[str, Any]:
        """Everything known of it, as JSON takes it."""
        return _record(self)


@dataclass(frozen=True)
class Difference:
    """How much better the second of two is, on the same problems.

    Args:
        name: of what is compared.
        first, second: the means.
        value: second - first.
        standard_error: of the difference; nan of a single unit.
        low, high: ends of its interval.
        level: probability that the interval holds the truth.
        method: how it was made.
        p_value: of a two-sided test that both are equally good.
        detectable: the smallest true difference this set would show four times in five; nan where nothing differs.
        correlation: of the two over problems; nan where one does not vary.
        num_problems: compared on.
        num_units: independent of each other: clusters, or problems.
    """

    name: str
    first: float
    second: float
    value: float
    standard_error: float
    low: float
    high: float
    level: float
    method: Method
    p_value: float
    detectable: float
    correlation: float
    num_problems: int
    num_units: int

    def cells(self) -> dict[str, str]:
        """What a table shows of it, by column."""
        return {
            "": self.name,
            "first": _number(self.first),
            "second": _number(self.second),
            "difference": f"{self.value:+.4f}",
            "standard error": _number(self.standard_error),
            f"{self.level:.0%} interval": _between(self.low, self.high),
            "p": _number(self.p_value),
            "could show": _number(self.detectable),
            "correlation": "-" if math.isnan(self.correlation) else f"{self.correlation:.2f}",
            "problems": _count(self.num_problems, self.num_units),
            "method": self.method,
        }

    def record(self) -> dict[str, Any]:
        """Everything known of it, as JSON takes it."""
        return _record(self)


def as_table(title: str, results: Sequence[Result]) -> Table:
    """For the screen; results of one kind and level."""
    return rows_table(title, [result.cells() for result in results])


def as_markdown(results: Sequence[Result]) -> str:
    """A table for reports; results of one kind and level."""
    return rows_markdown([result.cells() for result in results])


def rows_table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """For the screen.

    Args:
        title: above it.
        rows: cells by column, the same columns in each.
    """
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in WORDS else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def rows_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """For reports; see `rows_table`."""
    rules = ["---" if column in WORDS else "---:" for column in rows[0]]
    lines = [list(rows[0]), rules, *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_json(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """Everything known, beside what it is about; a number that is none (nan) is null."""
    content = {**about, "results": [result.record() for result in results]}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _record(result: Estimate | Difference) -> dict[str, Any]:
    held = asdict(result)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in held.items()}


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _between(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"


def _count(problems: int, units: int) -> str:
    return str(problems) if problems == units else f"{problems} in {units} clusters"
