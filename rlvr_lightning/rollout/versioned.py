"""Files of JSON lines that grow with the policy's version, through any number of kills and resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Read from a file's end at a time.
BLOCK = 2**16


def add_version(path: Path, version: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add what belongs to a version; on the disk when it returns.

    Versions come in order. A run that goes on from a checkpoint comes by some of them again: what is there of this version
    and later ones is taken off first, and so is a line that a kill has cut.

    Args:
        path: of the file.
        version: optimizer steps of the policy.
        rows: the lines, to which the version is added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"version": version, **row}, ensure_ascii=False) + "\n" for row in rows)
    with path.open("r+b" if path.is_file() else "w+b") as file:
        file.seek(_end(file, version))
        file.truncate()
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def _end(file: Any, version: int) -> int:
    """Where what came before a version ends; the file is read from behind, as far as that is."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while True:
        # Whole lines of the tail; its first may be cut, unless the file begins with it.
        first = 0 if start == 0 else tail.find(b"\n") + 1
        end = tail.rfind(b"\n") + 1
        while end > first:
            begin = tail.rfind(b"\n", first, end - 1) + 1 or first
            if json.loads(tail[begin:end])["version"] < version:
                return int(start + end)
            end = begin
        if start == 0:
            return 0
        step = min(BLOCK, start)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
