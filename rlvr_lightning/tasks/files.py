"""Rows of a file: JSON lines (gzipped or not) or Parquet."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import DataError, MissingDependencyError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_rows(path: Path, setting: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a file, and where it stands (`file, line 7`).

    Args:
        path: of the file.
        setting: that names it, told with what is wrong with it; None for none.

    Raises:
        DataError: the file is missing, of another kind, or a line is no JSON object.
        MissingDependencyError: Parquet without pyarrow.
    """
    named = str(path) if setting is None else f"{setting}={path}"
    if path.is_dir():
        raise DataError(f"{named} is a folder: give a file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
        raise DataError(f"{named} does not exist" + (f"; did you mean {path.parent / close[0]}?" if close else ""))
    if path.name.endswith(".parquet"):
        yield from _parquet(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path)
    else:
        raise DataError(f"{named} is of no known kind: there are {', '.join(SUFFIXES)}")


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
