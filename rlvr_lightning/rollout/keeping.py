"""What a rollout phase leaves in the output folder."""

from __future__ import annotations

from pathlib import Path

from rlvr_lightning.rollout.collector import Collected
from rlvr_lightning.rollout.gathering import from_all_ranks, is_first_rank
from rlvr_lightning.rollout.solve_rates import FILE, add_phase
from rlvr_lightning.rollout.store import phase_records, write_records


def keep_phase(folder: Path, version: int, drawn: Collected) -> None:
    """Write `rollouts/version_N.jsonl.gz` and add to `solve_rates.jsonl`. Every rank must call it.

    Args:
        folder: the output folder.
        version: optimizer steps of the policy it was drawn from.
        drawn: this rank's.
    """
    records = from_all_ranks(phase_records(drawn.rollouts, drawn.steps))
    groups = from_all_ranks([*drawn.groups.items()])
    if not is_first_rank():
        return
    ordered = sorted(records, key=lambda record: (record["prompt_index"], record["sample"]))
    write_records(folder / "rollouts" / f"version_{version}.jsonl.gz", ordered)
    add_phase(folder / FILE, version, [group for _, group in sorted(groups, key=lambda pair: pair[0])])
