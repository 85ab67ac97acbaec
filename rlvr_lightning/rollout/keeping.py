"""What rollout phases leave in the output folder: who was asked what, what was answered, what it was worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.rollout.background import Background
from rlvr_lightning.rollout.collector import Collected
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.rollout.recorded import write_recorded
from rlvr_lightning.rollout.solve_rates import FILE, add_phase
from rlvr_lightning.rollout.store import phase_records, rollout_record
from rlvr_lightning.rollout.versioned import add_version
from rlvr_lightning.types import Generation, Rollout

HELD_OUT, CANARY = "held_out", "canary.jsonl"


class Keeper:
    """Writes phases in the background: each rank its own responses, the first one `solve_rates.jsonl` of all.

    Args:
        folder: the output folder.
        seed: of the run: each response is kept with its own.
        rank: this one.
        ranks: how many there are.
    """

    def __init__(self, folder: Path, seed: int, rank: int, ranks: int) -> None:
        self.folder, self.seed, self.rank, self.ranks = folder, seed, rank, ranks
        self._background = Background()

    def keep_phase(self, phase: int, drawn: Collected) -> None:
        """Have `rollouts/` and `solve_rates.jsonl` written. Every rank must call it.

        Args:
            phase: optimizer steps of the policy at the phase's beginning.
            drawn: this rank's.

        Raises:
            RolloutError: what was to be written before could not be.
        """
        groups = sorted(from_all_ranks([*drawn.groups.items()]), key=lambda pair: pair[0])

        def write() -> None:
            records = [self._seeded(one, "train") for one in phase_records(drawn.rollouts, drawn.steps)]
            write_recorded(self.folder / "rollouts", phase, self.rank, self.ranks, records)
            if self.rank == 0:
                add_phase(self.folder / FILE, phase, [group for _, group in groups])

        self._background.put(write)

    def keep_held_out(self, version: int, rollouts: Sequence[Rollout]) -> None:
        """Have the responses to held-out problems written, in `held_out/`.

        Raises:
            RolloutError: what was to be written before could not be.
        """
        # The policy's version names them: a run that goes on from an earlier step draws them again.
        folder, kept = self.folder / HELD_OUT, list(rollouts)

        def write() -> None:
            records = [self._seeded(rollout_record(rollout, None), "held-out") for rollout in kept]
            write_recorded(folder, version, self.rank, self.ranks, records)

        self._background.put(write)

    def keep_canary(self, version: int, drawn: Sequence[Generation]) -> None:
        """Have the answers to the fixed prompts written, in `canary.jsonl`: they tell a replay whose policy it was.

        Raises:
            RolloutError: what was to be written before could not be.
        """
        if self.rank == 0:
            rows = [{"token_ids": one.token_ids, "logprobs": one.logprobs} for one in drawn]
            self._background.put(lambda: add_version(self.folder / CANARY, version, rows))

    def _seeded(self, record: dict[str, Any], purpose: str) -> dict[str, Any]:
        # As `task=jsonl` reads them back.
        asked = {"id": record["problem_id"], "problem": record["messages"][-1]["content"]}
        return {**record, **asked, "seed": derived_seed(self.seed, purpose, record["prompt_index"], record["sample"])}

    def flush(self) -> None:
        """Wait until all is on the disk: before a checkpoint says that it is.

        Raises:
            RolloutError: it cannot be.
        """
        self._background.flush()

    def close(self) -> None:
        """Write what there is and end."""
        self._background.close()
