"""Rollouts on disk as Parquet: a file for each rank and phase, a row for each response.

`pandas.read_parquet("RUN/rollouts")` reads a whole run, `task=jsonl task.path=FILE` takes its problems.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import DataError
from rlvr_lightning.rollout.files import sync_folder


def schema() -> Any:
    """Columns and their types."""
    import pyarrow as pa

    text, tokens = pa.string(), pa.list_(pa.int32())
    message = pa.struct([("role", text), ("content", text)])
    return pa.schema(
        [
            ("phase", pa.int64()),
            ("policy_version", pa.int64()),
            ("id", text),
            ("problem", text),
            ("prompt_index", pa.int64()),
            ("sample", pa.int32()),
            ("seed", pa.int64()),
            ("messages", pa.list_(message)),
            ("answer", text),
            ("response", text),
            ("finish_reason", text),
            ("verdict", text),
            ("reward", pa.float64()),
            ("correct", pa.bool_()),
            ("extracted", text),
            ("parts", pa.map_(text, pa.float64())),
            ("error", text),
            ("advantage", pa.float32()),
            ("prompt_token_ids", tokens),
            ("token_ids", tokens),
            ("written", pa.list_(pa.bool_())),
            ("logprobs", pa.list_(pa.float32())),
        ]
    )


def recorded_file(folder: Path, phase: int, rank: int, ranks: int) -> Path:
    """Where a rank's responses of the phase drawn for policy version `phase` lie."""
    return folder / f"version_{phase:08}.rank_{rank}_of_{ranks}.parquet"


def write_recorded(folder: Path, phase: int, rank: int, ranks: int, records: Sequence[dict[str, Any]]) -> None:
    """Write a rank's file whole, or leave what was there.

    The first rank removes what another number of ranks has left of the phase, in a session that did not get far.

    Raises:
        OSError: there is no room, or no permission.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = recorded_file(folder, phase, rank, ranks)
    partial = path.with_name(f".{path.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            pq.write_table(
                pa.Table.from_pylist([{"phase": phase, **r} for r in records], schema()), file, compression="zstd"
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if rank == 0:
        for other in folder.glob(f"version_{phase:08}.rank_*.parquet"):
            if not other.stem.endswith(f"_of_{ranks}"):
                other.unlink()
    sync_folder(folder)


def recorded_files(folder: Path) -> list[Path]:
    """The files of a folder, phase after phase.

    Raises:
        DataError: there is none.
    """
    files = sorted(folder.glob("version_*.parquet"))
    if not files:
        raise DataError(f"{folder} holds no recorded responses (version_*.parquet)")
    return files


def read_file(path: Path) -> list[dict[str, Any]]:
    """The responses of a file.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return rows


def read_recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Every recorded response of a folder, phase after phase, rank after rank.

    Raises:
        DataError: there is none, or a file cannot be read.
    """
    for path in recorded_files(folder):
        yield from read_file(path)
