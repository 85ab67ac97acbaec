"""Rows of a data set on the hub, or of a local folder of data files, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlvr_lightning.errors import DataError, MissingDependencyError


def read_hub(path: str, name: str | None, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row, and where it stands (`openai/gsm8k (test), row 7`).

    Args:
        path: of the data set on the hub, or a local folder.
        name: its configuration, or None.
        split: to read.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        DataError: the data set cannot be loaded.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs the datasets package: pip install 'rlvr-lightning[datasets]'"
        ) from error
    where = f"{path} ({split})"
    try:
        rows: Any = load_dataset(path, name, split=split)
    except (ValueError, OSError, DatasetsError) as error:
        raise DataError(f"{where} cannot be loaded: {str(error).splitlines()[0]}") from error
    for index, row in enumerate(rows, 1):
        yield f"{where}, row {index}", row
