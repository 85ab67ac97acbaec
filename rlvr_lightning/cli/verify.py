"""`verify`: responses in a file, each judged by a verifier, and where the file says what is right, how far they agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rlvr_lightning.config.components import component
from rlvr_lightning.errors import DataError
from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.tasks.files import read_rows
from rlvr_lightning.types import VERDICT_KINDS, Problem
from rlvr_lightning.verifiers.extraction import check_convention
from rlvr_lightning.verifiers.judging import Judgement
from rlvr_lightning.verifiers.pool import VerifierPool
from rlvr_lightning.verifiers.protocol import Judge

# Disagreements named below the tables.
SHOWN = 10


@dataclass(frozen=True)
class Case:
    """One answer of a file.

    Args:
        response: what is judged.
        problem: what it answers; the row's other fields are its `meta`.
        label: whether it is right, where the row says so.
        groups: what it is counted under, by the name of the table.
    """

    response: str
    problem: Problem
    label: bool | None
    groups: Mapping[str, str]


def read_case(row: Mapping[str, Any], where: str, *, gold_needed: bool = True) -> Case:
    """A row of a file as something to judge.

    Args:
        row: `id` (or `problem_id`, as rollout files have it, `question_id`, `task_id`); `response`, or `prediction`;
            `answer`, or `gold`; where it
            has them, `correct`, `category`, `tier`, `problem` and `extract` (where in the response the answer stands). A
            `prediction` without `extract` stands alone, unless the row's `kind` is `response`.
        where: it stands, for the errors.
        gold_needed: whether a row without a gold answer cannot be judged.

    Raises:
        DataError: a field is missing or of another kind.
        ConfigError: `extract` names no convention.
    """
    name = _first(row, ("id", "problem_id", "question_id", "task_id"), where, str | int)
    response = _first(row, ("response", "prediction"), where, str)
    # Numbers are answers too, but true and false are none.
    needed = gold_needed or "answer" in row or "gold" in row
    gold = str(_first(row, ("answer", "gold"), where, str | int | float)) if needed else ""
    label = row.get("correct")
    if label is not None and not isinstance(label, bool):
        raise DataError(f"{where}: correct must be true or false; got {label!r}")
    if row.get("extract") is not None:
        check_convention(row["extract"], f"{where}: extract")
    meta = {key: value for key, value in row.items() if key not in ("id", "response", "prediction", "answer", "gold")}
    if "response" not in row and row.get("kind") != "response":
        meta.setdefault("extract", "free")
    question = row.get("problem")
    messages = ({"role": "user", "content": question},) if isinstance(question, str) else ()
    groups = {name: str(row[name]) for name in ("category", "tier") if row.get(name) is not None}
    return Case(response, Problem(str(name), messages, gold, meta), label, groups)


def _first(row: Mapping[str, Any], fields: Sequence[str], where: str, kind: Any) -> Any:
    found = next((field for field in fields if row.get(field) is not None), None)
    if found is None:
        raise DataError(f"{where}: it has neither {' nor '.join(fields)}")
    if not isinstance(row[found], kind) or isinstance(row[found], bool):
        raise DataError(
            f"{where}: {found} must be {'a text' if kind is str else 'a text or a number'}; got {row[found]!r}"
        )
    return row[found]


def verify_file(cfg: DictConfig, console: Console) -> list[Judgement]:
    """Judge a file's answers, write a row for each, and print the tables.

    Args:
        cfg: `file`, `output`, `verifier` and `grading`.
        console: gets the tables.

    Returns:
        The judgements, row by row.

    Raises:
        DataError: a row cannot be used; nothing is written.
    """
    verifier = component(cfg, "verifier")
    needed = not (isinstance(verifier, Judge) and verifier.judges == "code")
    rows = read_rows(Path(cfg.file).expanduser())
    cases = [read_case(row, where, gold_needed=needed) for where, row in rows]
    pool = VerifierPool(verifier, cfg.grading.workers, cfg.grading.timeout_s)
    try:
        # Rows of one id may differ in their other fields: each is judged by itself.
        futures = []
        for case in cases:
            pool.forget()
            futures.append(pool.submit(case.response, case.problem))
        waited = track(futures, "verifying", console=console, transient=True, disable=not console.is_terminal)
        judgements = pool.collect(waited)
    finally:
        pool.close()
    if cfg.output is not None:
        lines = [json.dumps(_row(case, one)) for case, one in zip(cases, judgements, strict=True)]
        write_whole(Path(cfg.output).expanduser(), "".join(f"{line}\n" for line in lines).encode())
    _show(cases, judgements, console)
    return judgements


def _row(case: Case, judgement: Judgement) -> dict[str, Any]:
    verdict = judgement.verdict
    return {
        "id": case.problem.id,
        "verdict": judgement.kind,
        "extracted": None if verdict is None else verdict.extracted,
        "seconds": round(judgement.seconds, 6),
        "reward": None if verdict is None else verdict.reward,
        "error": judgement.error,
    }


def agrees(label: bool, judgement: Judgement) -> bool:
    """Whether a judgement is what the label says; an `error` never is."""
    return judgement.kind != "error" and (judgement.kind == "correct") is label


def _show(cases: Sequence[Case], judgements: Sequence[Judgement], console: Console) -> None:
    pairs = list(zip(cases, judgements, strict=True))
    names = [name for name in ("category", "tier") if any(name in case.groups for case in cases)]
    for name in names or ["category"]:
        console.print(_table(name, pairs))
    apart = [(case, one) for case, one in pairs if case.label is not None and not agrees(case.label, one)]
    for case, one in apart[:SHOWN]:
        told = one.error or f"extracted {one.verdict and one.verdict.extracted!r}"
        label = "correct" if case.label else "wrong"
        console.print(
            f"{case.problem.id}: {one.kind}, but the file says {label}; {told}, gold {case.problem.answer[:60]!r}",
            markup=False,
            soft_wrap=True,
        )
    if len(apart) > SHOWN:
        console.print(f"and {len(apart) - SHOWN} more", soft_wrap=True)


def _table(name: str, pairs: Sequence[tuple[Case, Judgement]]) -> Table:
    labelled = any(case.label is not None for case, _ in pairs)
    table = Table(title=f"verdicts by {name}", title_justify="left")
    table.add_column(name)
    for column in ("answers", *VERDICT_KINDS, *(("labelled", "disagree", "agreement") if labelled else ())):
        table.add_column(column, justify="right")
    groups: dict[str, list[tuple[Case, Judgement]]] = {}
    for case, one in pairs:
        groups.setdefault(case.groups.get(name, "-"), []).append((case, one))
    for group, members in sorted(groups.items()):
        table.add_row(group, *_numbers(members, labelled=labelled))
    table.add_section()
    table.add_row("all", *_numbers(pairs, labelled=labelled))
    return table


def _numbers(pairs: Sequence[tuple[Case, Judgement]], *, labelled: bool) -> list[str]:
    kinds = Counter(one.kind for _, one in pairs)
    numbers = [str(len(pairs)), *(str(kinds[kind]) for kind in VERDICT_KINDS)]
    if labelled:
        judged = [agrees(case.label, one) for case, one in pairs if case.label is not None]
        share = f"{sum(judged) / len(judged):.1%}" if judged else "-"
        numbers += [str(len(judged)), str(len(judged) - sum(judged)), share]
    return numbers
