"""What a study says, from its runs' own files alone: Markdown, HTML, figures."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

from rlvr_lightning.errors import DataError
from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.study.figures import draw_figures
from rlvr_lightning.study.pulls import Pull, pulls
from rlvr_lightning.study.runs import (
    SIGNIFICANCE,
    Comparison,
    Summary,
    comparisons,
    read_runs,
    summaries,
)
from rlvr_lightning.study.spec import COMPARED, Study

Row = Sequence[str]
METHODS = ("method", "seeds", "avg@k", "s.d.", "pass@k", "area", "escaped", "95 % interval")
PULLED = ("method", "regularizer", "early", "late", "at the sampled token")
AGAINST = ("method", "pairs", "difference", "p", "corrected p", "")
STYLE = (
    "body{font-family:sans-serif;max-width:72em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}img{max-width:100%}"
)


def write_report(study: Study, folder: Path) -> Path:
    """Compute everything anew and write `report.md`, `report.html` and the figures; the same runs give the same bytes.

    Raises:
        DataError: no run is finished.
        ConfigError: see `read_runs`.
    """
    runs = read_runs(study, folder)
    if not runs:
        raise DataError(f"{folder} has no finished run")
    found, compared = summaries(study, runs), comparisons(study, runs)
    figures = draw_figures(study, runs, folder)
    forces = pulls(study, runs)
    tables = [
        _methods(study, found),
        *(_compared(study, compared, of) for of in (COMPARED, *study.also)),
        *([_forces(study, forces)] if forces else []),
        _settings(study, found),
    ]
    unfinished = len(study.jobs(folder)) - len(runs)
    texts = [
        _intro(study, len(runs), unfinished),
        _note(study, compared),
        "Every run also has: " + ", ".join(f"`{o}`" for o in study.overrides) + ".",
    ]
    write_whole(folder / "report.md", _markdown(study, texts, tables, figures).encode())
    write_whole(folder / "report.html", _html(study, texts, tables, figures).encode())
    return folder / "report.md"


Table = tuple[str, Row, Sequence[Row]]


def _methods(study: Study, found: Sequence[Summary]) -> Table:
    head = [*METHODS, *([study.probe] if study.probe else []), *study.also]
    rows = [
        [
            study.title_of(one.method),
            str(len(one.seeds)),
            f"{one.accuracy:.3f}",
            f"{one.spread:.3f}",
            f"{one.any_right:.3f}",
            f"{one.area:.3f}",
            f"{one.escaped} of {len(one.seeds)}",
            f"{one.share[0]:.2f} to {one.share[1]:.2f}",
            *([] if study.probe is None else ["" if one.probe is None else f"{one.probe:.2g}"]),
            *("" if math.isnan(value) else f"{value:.3f}" for value in one.also.values()),
        ]
        for one in found
    ]
    return "Methods", head, rows


def _compared(study: Study, compared: Sequence[Comparison], of: str) -> Table:
    rows = [
        [
            study.title_of(one.method),
            str(one.pairs),
            f"{one.difference:+.3f}",
            f"{one.p_value:.4f}",
            "" if math.isnan(one.corrected) else f"{one.corrected:.4f}",
            "too few pairs" if math.isnan(one.corrected) else "differs" if one.claimed else "",
        ]
        for one in compared
        if one.of == of
    ]
    what = "" if of == COMPARED else f": {of}"
    return f"Against {study.title_of(study.baseline)}{what}", AGAINST, rows


def _forces(study: Study, found: Sequence[Pull]) -> Table:
    rows = [
        [study.title_of(one.method), one.regularizer, f"{one.early:.2g}", f"{one.late:.2g}", f"{one.sampled:.2g}"]
        for one in found
    ]
    return "A regularizer's pull at its tokens' logits, over the policy gradient's", PULLED, rows


def _settings(study: Study, found: Sequence[Summary]) -> Table:
    rows = [[study.title_of(one.method), " ".join(study.methods[one.method].overrides)] for one in found]
    return "Settings", ("method", "overrides"), rows


def _intro(study: Study, runs: int, unfinished: int) -> str:
    waiting = f" {unfinished} more are not finished." if unfinished else ""
    return f"{study.question} {runs} runs.{waiting}"


def _note(study: Study, compared: Sequence[Comparison]) -> str:
    claimed = [
        study.title_of(one.method) + ("" if one.of == COMPARED else f" ({one.of})") for one in compared if one.claimed
    ]
    told = ", ".join(claimed) if claimed else "none"
    also = f"; {', '.join(study.also)}: the mean over the last tenth of what was logged" if study.also else ""
    return (
        f"At the end of a run: avg@k, pass@k; area is avg@k over the steps, in the mean{also}. A run has escaped where avg@k is above "
        f"{study.success:g}; the interval is Clopper and Pearson's. Methods are compared over equal seeds by the exact randomization test, "
        f"corrected for the number of comparisons (Holm) that have pairs enough to be "
        f"told from chance (Tarone). Different from {study.title_of(study.baseline)} at {SIGNIFICANCE:g}: {told}."
    )


def _markdown(study: Study, texts: Sequence[str], tables: Sequence[Table], figures: Sequence[Path]) -> str:
    intro, note, common = texts
    parts = [f"# {study.name}", intro, note]
    for place, (title, head, rows) in enumerate(tables):
        lines = [
            "| " + " | ".join(head) + " |",
            "|" + " --- |" * len(head),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
        parts += [f"## {title}", *([common] if place == len(tables) - 1 else []), "\n".join(lines)]
        if place == 0:
            parts += [f"![{figure.stem}]({figure.name})" for figure in figures]
    return "\n\n".join(parts) + "\n"


def _html(study: Study, texts: Sequence[str], tables: Sequence[Table], figures: Sequence[Path]) -> str:
    def row(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    intro, note, common = (html.escape(text.replace("`", "")) for text in texts)
    parts = [f"<h1>{html.escape(study.name)}</h1>", f"<p>{intro}</p>", f"<p>{note}</p>"]
    for place, (title, head, rows) in enumerate(tables):
        body = row(head, "th") + "".join(row(cells, "td") for cells in rows)
        parts += [
            f"<h2>{html.escape(title)}</h2>",
            *([f"<p>{common}</p>"] if place == len(tables) - 1 else []),
            f"<table>{body}</table>",
        ]
        if place == 0:
            parts += [
                f'<p><img alt="{figure.stem}" src="data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}"></p>'
                for figure in figures
            ]
    title = html.escape(study.name)
    return (
        f'<!doctype html>\n<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n"
    )
