"""Problems from a file: JSON lines (gzipped or not) or Parquet."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import DataError, MissingDependencyError
from rlvr_lightning.tasks.rows import RowFormat, divide, to_problems
from rlvr_lightning.types import Problem

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a file, and where it stands (`file, line 7`).

    Raises:
        DataError: the file is missing, of another kind, or a line is no JSON object.
        MissingDependencyError: Parquet without pyarrow.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: task.path takes a file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
        raise DataError(f"{path} does not exist" + (f"; did you mean {path.parent / close[0]}?" if close else ""))
    if path.name.endswith(".parquet"):
        yield from _parquet(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path)
    else:
        raise DataError(f"{path} is of no known kind: task.path takes {', '.join(SUFFIXES)}")


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Bytes, so that a line that is no UTF-8 is reported with its number too.
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8-sig").rstrip())
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: no JSON ({error.msg} at column {error.colno})") from error
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: no UTF-8 ({error.reason} at byte {error.start + 1})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{where}: a row must be a JSON object; got {type(row).__name__}")
                yield where, row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be read: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependencyError(f"{path} needs pyarrow: pip install 'rlvr-lightning[datasets]'") from error
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", row


class JsonlTask:
    """Problems from a file.

    Args:
        path: `.jsonl`, `.jsonl.gz` or `.parquet`.
        held_out_path: problems to validate on; None to take `held_out` rows of `path`.
        problem_field, answer_field, id_field: names of the fields.
        answer_pattern: a regular expression whose first group is the answer within its field.
        system: a system message.
        template: the user message; `{problem}` stands for the question.
        held_out: rows to validate on: the first of `held_out_path`, or chosen from `path` by the seed.
        limit: training problems at most.
        seed: of the choice of held-out rows.

    Raises:
        DataError: a file or row cannot be used; the message names the line.
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        path: str,
        held_out_path: str | None = None,
        problem_field: str = "problem",
        answer_field: str = "answer",
        id_field: str = "id",
        answer_pattern: str | None = None,
        system: str | None = None,
        template: str = "{problem}",
        held_out: int = 64,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        form = RowFormat(problem_field, answer_field, id_field, answer_pattern, system, template)
        train = self._read(path, form)
        apart = None if held_out_path is None else self._read(held_out_path, form)
        self._train, self._held_out = divide(train, held_out, limit, seed, apart)

    @staticmethod
    def _read(path: str, form: RowFormat) -> list[Problem]:
        return to_problems(read_rows(Path(path).expanduser()), form, path)

    def train(self) -> Sequence[Problem]:
        """Problems to learn from."""
        return self._train

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on, disjoint from `train` where they come from one file."""
        return self._held_out
