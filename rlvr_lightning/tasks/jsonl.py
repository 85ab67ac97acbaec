"""Problems from a file: JSON lines (gzipped or not) or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.tasks.files import read_rows
from rlvr_lightning.tasks.hygiene import Screening
from rlvr_lightning.tasks.rows import RowFormat, divide, to_problems
from rlvr_lightning.types import Problem


class JsonlTask:
    """Problems from a file.

    Args:
        path: `.jsonl`, `.jsonl.gz` or `.parquet`, also a run's `rollouts/version_*.parquet`.
        held_out_path: problems to validate on; None to take `held_out` rows of `path`.
        problem_field, answer_field, id_field: names of the fields.
        answer_pattern: a regular expression whose first group is the answer within its field.
        system: a system message.
        template: the user message; `{problem}` stands for the question.
        held_out: rows to validate on: the first of `held_out_path`, or chosen from `path` by the seed.
        limit: training problems at most, of those that stay.
        seed: of the choice of held-out rows.
        decontaminate: whether training problems that overlap with evaluation problems are dropped.
        evaluation_paths: files of evaluation problems they are compared with besides the held-out ones.
        difficulty: lowest and highest solve rate of training problems; None for any.
        solve_rates: a file of `predict` that says how often each was solved; goes with `difficulty`.

    Raises:
        DataError: a file or row cannot be used; the message names the line.
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        path: str,
        held_out_path: str | None = None,
        problem_field: str = "problem",
        answer_field: str | None = "answer",
        id_field: str = "id",
        answer_pattern: str | None = None,
        system: str | None = None,
        template: str = "{problem}",
        held_out: int = 64,
        limit: int | None = None,
        seed: int = 0,
        decontaminate: bool = False,
        evaluation_paths: Sequence[str] = (),
        difficulty: Sequence[float] | None = None,
        solve_rates: str | None = None,
    ) -> None:
        screening = Screening(decontaminate, evaluation_paths, difficulty, solve_rates)
        form = RowFormat(problem_field, answer_field, id_field, answer_pattern, system, template)
        train = self._read(path, form, "task.path")
        apart = None if held_out_path is None else self._read(held_out_path, form, "task.held_out_path")
        train, self._held_out = divide(train, held_out, limit, seed, apart)
        # All of an evaluation file counts, also what is not validated on.
        train, self.hygiene = screening.apply(train, self._held_out if apart is None else apart, form)
        self._train = train[:limit]

    @staticmethod
    def _read(path: str, form: RowFormat, setting: str) -> list[Problem]:
        return to_problems(_once(read_rows(Path(path).expanduser(), setting), form), form, path)

    def train(self) -> Sequence[Problem]:
        """Problems to learn from."""
        return self._train

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on, disjoint from `train` where they come from one file."""
        return self._held_out


def _once(rows: Iterable[tuple[str, Mapping[str, Any]]], form: RowFormat) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Of a file of rollouts, which has a row for each response, the first to each problem; of other files every row."""
    seen = set()
    for where, row in rows:
        problem = (row.get(form.id_field), row.get("prompt_index")) if "sample" in row else (where, None)
        if problem not in seen:
            seen.add(problem)
            yield where, row
