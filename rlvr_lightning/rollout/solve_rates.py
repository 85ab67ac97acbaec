"""How often each problem was solved, kept through a run: a line for each group of responses, phase after phase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlvr_lightning.rollout.versioned import add_version
from rlvr_lightning.types import Outcomes

FILE = "solve_rates.jsonl"


def add_phase(path: Path, version: int, groups: Sequence[Outcomes]) -> None:
    """Add a rollout phase; on the disk when it returns.

    Args:
        path: of the file.
        version: optimizer steps of the policy that the phase was drawn from.
        groups: of all ranks.
    """
    add_version(path, version, [_row(group) for group in groups])


def _row(group: Outcomes) -> dict[str, object]:
    cluster = {} if group.cluster is None else {"cluster": group.cluster}
    return {"id": group.id, "correct": group.correct, "rewards": group.rewards, **cluster}
