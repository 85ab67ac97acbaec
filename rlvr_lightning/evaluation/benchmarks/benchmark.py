"""A benchmark: its problems, how responses are drawn, who judges them, how many count."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.protocols import Verifier
from rlvr_lightning.tasks.files import SUFFIXES, read_rows
from rlvr_lightning.tasks.hub import read_hub
from rlvr_lightning.tasks.rows import RowFormat, to_problems
from rlvr_lightning.types import Problem


@dataclass(frozen=True)
class Hub:
    """A benchmark's data set on the hub, whose rows may have other names than its file.

    Args:
        path: of the data set.
        name: its configuration, or None.
        split: that is the benchmark.
        problem_field, answer_field, id_field: names of the fields; no `answer_field` where tests judge.
        answer_pattern: a regular expression whose first group is the answer within its field.
        template: the user message, where it shows fields that have other names there; None for the benchmark's.
    """

    path: str
    name: str | None = None
    split: str = "test"
    problem_field: str = "problem"
    answer_field: str | None = "answer"
    id_field: str = "id"
    answer_pattern: str | None = None
    template: str | None = None


@dataclass(frozen=True)
class Window:
    """Problems of a stretch of time: those a model cannot have learned from.

    Args:
        field: of the row, a date (2025-01-31, with or without a time of day).
        first: day that counts.
        before: day that does not count any more.

    Raises:
        ConfigError: a day is no date, or there is none between them.
    """

    field: str
    first: str
    before: str

    def __post_init__(self) -> None:
        if not _date(self.first) < _date(self.before):
            raise ConfigError(
                f"the window of a benchmark must begin before it ends; got {self.first} and {self.before}"
            )

    def holds(self, row: Mapping[str, Any], where: str) -> bool:
        """Whether a row is in it.

        Raises:
            DataError: its date cannot be read.
        """
        try:
            day = date.fromisoformat(str(row.get(self.field))[:10])
        except ValueError as error:
            raise DataError(
                f"{where}: field {self.field!r} is no date, and the benchmark has a window of dates: its window=null takes all rows"
            ) from error
        return _date(self.first) <= day < _date(self.before)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(str(text))
    except ValueError as error:
        raise ConfigError(f"the window of a benchmark must be dates such as 2025-01-31; got {text!r}") from error


@dataclass(frozen=True)
class Protocol:
    """How a benchmark's responses are drawn, apart from how training draws.

    Args:
        samples: responses to each problem; avg@samples is over all of them.
        pass_k: k of pass@k; None for `samples`.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: probability of the set of tokens that is drawn from.
        max_new_tokens: of a response.
        template: the user message; `{problem}` stands for the question.
        system: a system message.

    Raises:
        ConfigError: a number is out of range.
    """

    samples: int
    pass_k: int | None
    temperature: float
    top_p: float
    max_new_tokens: int
    template: str
    system: str | None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1:
            raise ConfigError(
                f"samples and max_new_tokens of a benchmark must be at least 1; got {self.samples} and {self.max_new_tokens}"
            )
        if self.pass_k is not None and not 1 <= self.pass_k <= self.samples:
            raise ConfigError(f"pass_k={self.pass_k} of a benchmark must be in 1 to samples={self.samples}")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(
                f"a benchmark's temperature must be at least 0 and its top_p in (0, 1]; got {self.temperature} and {self.top_p}"
            )

    @property
    def k(self) -> int:
        """Of pass@k."""
        return self.samples if self.pass_k is None else self.pass_k


class Benchmark:
    """Problems to measure on, and by which protocol.

    Args:
        file: name of its file in the folder of benchmarks.
        verifier: judges its responses.
        samples, pass_k, temperature, top_p, max_new_tokens, template, system: see `Protocol`.
        hub: where it is without such a folder; None for nowhere.
        problem_field, answer_field, id_field: of the file's rows; no `answer_field` where tests judge.
        window: problems of a stretch of time alone; None for all.
        limit: problems at most, chosen by `seed`; of two limits the smaller chooses among the larger's.
        seed: of that choice.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        file: str,
        verifier: Verifier,
        samples: int,
        max_new_tokens: int,
        pass_k: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        template: str = "{problem}",
        system: str | None = None,
        hub: Hub | None = None,
        problem_field: str = "problem",
        answer_field: str | None = "answer",
        id_field: str = "id",
        window: Window | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit of a benchmark must be at least 1 or null; got {limit}")
        self.file, self.verifier, self.hub, self.window = file, verifier, hub, window
        self.limit, self.seed = limit, seed
        self.protocol = Protocol(samples, pass_k, temperature, top_p, max_new_tokens, template, system)
        self._form = RowFormat(problem_field, answer_field, id_field, None, system, template)

    def problems(self, folder: Path | None) -> list[tuple[int, Problem]]:
        """Each problem with its place among all of them, in their order.

        Args:
            folder: of benchmark files; None for the hub.

        Raises:
            DataError: they cannot be had or read.
        """
        held = self._all(folder)
        chosen = range(len(held))
        if self.limit is not None and self.limit < len(held):
            order = list(chosen)
            random.Random(f"benchmark-{self.seed}").shuffle(order)
            return [(place, held[place]) for place in sorted(order[: self.limit])]
        return [(place, held[place]) for place in chosen]

    def _all(self, folder: Path | None) -> list[Problem]:
        if folder is not None:
            path = _file(folder, self.file)
            return to_problems(self._in_window(read_rows(path)), self._form, str(path))
        if self.hub is None:
            raise DataError(f"{self.file} is on no hub: put it into a folder and name that by evaluation.folder=DIR")
        hub = self.hub
        form = replace(
            self._form,
            problem_field=hub.problem_field,
            answer_field=hub.answer_field,
            id_field=hub.id_field,
            answer_pattern=hub.answer_pattern,
            template=hub.template or self._form.template,
        )
        try:
            rows = [*read_hub(hub.path, hub.name, hub.split)]
        except DataError as error:
            raise DataError(f"{error}; evaluation.folder=DIR takes {self.file} from a folder instead") from error
        return to_problems(self._in_window(rows), form, f"{hub.path} ({hub.split})")

    def _in_window(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        return ((where, row) for where, row in rows if self.window is None or self.window.holds(row, where))

    def described(self) -> dict[str, Any]:
        """The protocol, and who judges with which settings, as JSON takes it."""
        plain = (str, int, float, bool, dict, type(None))
        settings = {
            name: value
            for name, value in vars(self.verifier).items()
            if not name.startswith("_") and isinstance(value, plain)
        }
        return {**asdict(self.protocol), "verifier": {"name": type(self.verifier).__name__, **settings}}


def _file(folder: Path, name: str) -> Path:
    """The benchmark's file, under its name or with another ending that can be read."""
    stem = name.removesuffix(".jsonl")
    found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
    return found[0] if found else folder / name
