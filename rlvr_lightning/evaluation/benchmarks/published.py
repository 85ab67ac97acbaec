"""Published numbers, to stand beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.evaluation.benchmarks.results import Measured, mean_of


@dataclass(frozen=True)
class Published:
    """A row of a paper's table [percent].

    Args:
        model: as the paper names it.
        source: where it stands.
        averages: avg@k by benchmark; a benchmark that is missing was not published, or is not known here.
        mean: over the paper's benchmarks.
        note: what else a reader must know.
    """

    model: str
    source: str
    averages: Mapping[str, float]
    mean: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        numbers = [*self.averages.values(), *([] if self.mean is None else [self.mean])]
        if not numbers or not all(0 <= number <= 100 for number in numbers):
            raise ConfigError(f"published numbers of {self.model} must be percentages; got {numbers}")


def side_by_side(measured: Mapping[str, Sequence[Measured]], published: Sequence[Published]) -> list[dict[str, str]]:
    """Rows of a table: one for each policy that was measured, then the published ones, marked as such [percent].

    Args:
        measured: by policy; all on the same benchmarks.
        published: of a suite.
    """
    names = [one.name for one in next(iter(measured.values()))]
    rows = []
    for policy, results in measured.items():
        cells = {one.name: _percent(one.average.value, one.average.standard_error) for one in results}
        mean = mean_of(results)
        rows.append({"": policy, **cells, "mean": _percent(mean.value, mean.standard_error), "source": "measured"})
    for row in published:
        cells = {name: f"{row.averages[name]:.1f}" if name in row.averages else "-" for name in names}
        told = row.source if row.note is None else f"{row.source}; {row.note}"
        mean_cell = "-" if row.mean is None else f"{row.mean:.1f}"
        rows.append({"": row.model, **cells, "mean": mean_cell, "source": f"published: {told}"})
    return rows


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"
