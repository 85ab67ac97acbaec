"""`test benchmark=[...]`: policies measured on benchmarks, tables of them, and their differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from rlvr_lightning.config.benchmarks import Candidate, build_candidate, candidates, published_of
from rlvr_lightning.config.checks import check_folder, check_kinds
from rlvr_lightning.errors import INTERRUPTED
from rlvr_lightning.evaluation.benchmarks.published import side_by_side
from rlvr_lightning.evaluation.benchmarks.results import Measured, mean_of
from rlvr_lightning.evaluation.statistics import (
    Difference,
    Estimate,
    as_markdown,
    as_table,
    compared,
    rows_markdown,
    rows_table,
)
from rlvr_lightning.rollout.files import write_whole

if TYPE_CHECKING:
    from omegaconf import DictConfig


def measure_benchmarks(cfg: DictConfig) -> None:
    """Measure each policy on each benchmark, show and write what it comes to.

    Raises:
        RLVRError: a setting is wrong, a file is missing, or what is there was measured in another way.
    """
    check_kinds(cfg)
    check_folder(Path(cfg.output_dir))
    # On a narrower screen its lines go on below, and no number is cut.
    console = Console(width=max(Console().width, 140))
    ones = candidates(cfg)
    found: dict[str, dict[str, Measured]] = {}
    speaks = True
    for one in ones:
        try:
            found[one.label], speaks = _measure(cfg, one, console)
        except KeyboardInterrupt as end:
            console.print(
                f"interrupted; the same command with output_dir={cfg.output_dir} goes on with what there is",
                soft_wrap=True,
            )
            raise SystemExit(INTERRUPTED) from end
    if not speaks:
        return
    for one in ones:
        _tell(one, list(found[one.label].values()), console)
    _tell_together(cfg, {label: list(measured.values()) for label, measured in found.items()}, console)
    console.print(f"measured: {Path(cfg.output_dir) / 'benchmarks'}", soft_wrap=True)


def _measure(cfg: DictConfig, one: Candidate, console: Console) -> tuple[dict[str, Measured], bool]:
    trainer, module, data = build_candidate(cfg, one)
    with Progress(console=console, disable=not (console.is_terminal and trainer.is_global_zero)) as progress:
        tasks = {}

        def show(name: str, there: int, all_of_them: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(f"{one.label}: {name}", total=all_of_them)
            progress.update(tasks[name], completed=there)

        data.listeners.append(show)
        trainer.test(module, data, verbose=False)
    return data.measured, trainer.is_global_zero


def _tell(one: Candidate, measured: Sequence[Measured], console: Console) -> None:
    """One policy's table, and its files."""
    estimates = [estimate for result in measured for estimate in result.estimates]
    if len(measured) > 1:
        estimates.append(mean_of(measured))
    console.print(as_table(one.label, estimates))
    for result in measured:
        unjudged = {kind: result.kinds[kind] for kind in ("timeout", "error") if result.kinds[kind]}
        if unjudged:
            told = ", ".join(f"{count} {kind}" for kind, count in unjudged.items())
            console.print(f"{result.name}: {told}, which count as not right")
    write_summary(one.folder, one.about, measured, estimates)


def write_summary(
    folder: Path, about: Mapping[str, object], measured: Sequence[Measured], estimates: Sequence[Estimate]
) -> None:
    """`summary.json` and `summary.md` of a policy's folder."""
    content = {**about, "benchmarks": [result.record() for result in measured]}
    if len(measured) > 1:
        content["mean"] = estimates[-1].record()
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / "summary.json", text.encode())
    write_whole(folder / "summary.md", as_markdown(estimates).encode())


def _tell_together(cfg: DictConfig, found: Mapping[str, Sequence[Measured]], console: Console) -> None:
    """Several policies beside each other and beside published ones; differences from the first."""
    published, folder = published_of(cfg), Path(cfg.output_dir) / "benchmarks"
    if published or len(found) > 1:
        rows = side_by_side(found, published)
        console.print(rows_table("avg@k in percent, with its standard error", rows))
        write_whole(folder / "table.md", rows_markdown(rows).encode())
    first, *others = found
    for label in others:
        pairs = zip(found[first], found[label], strict=True)
        differences: list[Difference] = [difference(before, after) for before, after in pairs]
        console.print(as_table(f"{label} against {first}, problem by problem", differences))
        write_whole(folder / f"{label}-against-{first}.md", as_markdown(differences).encode())


def difference(before: Measured, after: Measured) -> Difference:
    """How much better the second policy is on a benchmark."""
    return replace(compared(before.problems, after.problems), name=after.name)
