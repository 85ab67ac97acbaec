"""How often each problem was solved, kept through a run: a line for each group of responses, phase after phase."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rlvr_lightning.types import Outcomes

FILE = "solve_rates.jsonl"


def add_phase(path: Path, version: int, groups: Sequence[Outcomes]) -> None:
    """Add a rollout phase; on the disk when it returns.

    Phases come in the order of their versions. A run that goes on from a checkpoint draws some of them again: what is there
    of this version and later ones is taken off first, and so is a line that a kill has cut.

    Args:
        path: of the file.
        version: optimizer steps of the policy that the phase was drawn from.
        groups: of all ranks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"version": version, **_row(group)}, ensure_ascii=False) + "\n" for group in groups)
    with path.open("r+b" if path.is_file() else "w+b") as file:
        content = file.read()
        file.seek(_end(content, version))
        file.truncate()
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def _row(group: Outcomes) -> dict[str, object]:
    cluster = {} if group.cluster is None else {"cluster": group.cluster}
    return {"id": group.id, "correct": group.correct, "rewards": group.rewards, **cluster}


def _end(content: bytes, version: int) -> int:
    """Where what came before a version ends."""
    end = content.rfind(b"\n") + 1
    while end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        if json.loads(content[begin:end])["version"] < version:
            break
        end = begin
    return end
