"""Which training problems are learned from: none that are evaluated on, those of a measured difficulty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.tasks.files import read_rows
from rlvr_lightning.tasks.outcomes import read_outcomes
from rlvr_lightning.tasks.overlap import Overlap, Text, find_overlap
from rlvr_lightning.tasks.rows import RowFormat
from rlvr_lightning.types import Problem


@dataclass(frozen=True)
class Hygiene:
    """What was looked at and left out before a run.

    Args:
        overlap: of training and evaluation problems.
        lines: what is said of it, a line each.
    """

    overlap: Overlap
    lines: tuple[str, ...]

    def examples(self) -> bytes:
        """A line for each training problem that overlaps, with the evaluation problem it is like."""
        rows = [
            {
                "kind": hit.kind,
                "train_id": hit.train.id,
                "evaluation_id": hit.evaluation.id,
                "shared": hit.shared,
                "train": hit.train.question,
                "evaluation": hit.evaluation.question,
            }
            for hit in self.overlap.hits
        ]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@dataclass(frozen=True)
class Screening:
    """Settings of a task that leave training problems out.

    Args:
        decontaminate: whether those that overlap with evaluation problems are dropped.
        evaluation_paths: files of further evaluation problems, besides the held-out ones.
        difficulty: lowest and highest solve rate, both included; None for any.
        solve_rates: a file of `predict` or `test` that says how often each was solved.

    Raises:
        ConfigError: a setting is out of range, or one of difficulty and solve_rates lacks the other.
    """

    decontaminate: bool = False
    evaluation_paths: Sequence[str] = ()
    difficulty: Sequence[float] | None = None
    solve_rates: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.decontaminate, bool):
            raise ConfigError(f"task.decontaminate must be true or false; got {self.decontaminate!r}")
        if isinstance(self.evaluation_paths, str):
            raise ConfigError(f"task.evaluation_paths must be a list: [{self.evaluation_paths}]")
        if (self.difficulty is None) != (self.solve_rates is None):
            raise ConfigError(
                "task.difficulty=[LOW,HIGH] needs task.solve_rates=FILE, a file of `predict`, and the other way round"
            )
        if self.difficulty is not None and not _is_range(self.difficulty):
            raise ConfigError(
                f"task.difficulty must be [LOW,HIGH] with 0 <= LOW <= HIGH <= 1; got {list(self.difficulty)}"
            )

    def apply(
        self, train: Sequence[Problem], evaluation: Sequence[Problem], form: RowFormat
    ) -> tuple[list[Problem], Hygiene]:
        """The training problems that stay, and what was found.

        Args:
            train: problems to learn from.
            evaluation: problems of the same form to measure on.
            form: how both were made, to compare what is asked and not the template.

        Raises:
            DataError: a file cannot be used, or nothing is left to learn from.
        """
        apart = [Text(problem.id, form.question(problem)) for problem in evaluation]
        apart += [text for path in self.evaluation_paths for text in _questions(path, form)]
        overlap = find_overlap([Text(problem.id, form.question(problem)) for problem in train], apart)
        lines = [self._overlap_line(overlap)]
        kept = list(train)
        if self.decontaminate:
            dropped = {hit.train.id for hit in overlap.hits}
            kept = [problem for problem in kept if problem.id not in dropped]
        if self.difficulty is not None and self.solve_rates is not None:
            low, high = self.difficulty
            kept, line = _of_difficulty(kept, low, high, self.solve_rates)
            lines.append(line)
        if not kept:
            raise DataError(f"task.decontaminate and task.difficulty leave nothing to learn from: {'; '.join(lines)}")
        return kept, Hygiene(overlap, tuple(lines))

    def _overlap_line(self, overlap: Overlap) -> str:
        sizes = f"{overlap.num_train} training and {overlap.num_evaluation} evaluation prompts"
        if not overlap.hits:
            return f"no overlap of {sizes}"
        counts = f"{overlap.count('exact')} exact, {overlap.count('13-gram')} by 13 words in a row"
        what = "dropped" if self.decontaminate else "kept: task.decontaminate=true drops them"
        return f"overlap of {sizes}: {counts} ({what})"


def _is_range(difficulty: Sequence[float]) -> bool:
    numbers = [value for value in difficulty if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len(difficulty) == len(numbers) == 2 and 0 <= numbers[0] <= numbers[1] <= 1


def _questions(path: str, form: RowFormat) -> list[Text]:
    rows = read_rows(Path(path).expanduser(), "task.evaluation_paths")
    texts = []
    for where, row in rows:
        name = row.get(form.id_field)
        texts.append(Text(where if name is None else str(name), form.field(row, form.problem_field, where)))
    if not texts:
        raise DataError(f"{path} has no rows")
    return texts


def _of_difficulty(train: Sequence[Problem], low: float, high: float, path: str) -> tuple[list[Problem], str]:
    rates = {problem.id: problem.solve_rate for problem in read_outcomes(Path(path).expanduser(), "task.solve_rates")}
    measured = {problem.id: rate for problem in train if (rate := rates.get(problem.id)) is not None}
    if not measured:
        raise DataError(f"task.solve_rates={path} has a verdict on none of the {len(train)} training problems")
    kept = [problem for problem in train if problem.id in measured and low <= measured[problem.id] <= high]
    return kept, (
        f"difficulty: {len(kept)} of {len(train)} training problems have a solve rate from {low} to {high}; "
        f"{len(train) - len(measured)} without a measured one are left out"
    )
