"""Two files of results on the same problems."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlvr_lightning.evaluation.statistics.accuracy import compared
from rlvr_lightning.evaluation.statistics.results import Difference
from rlvr_lightning.tasks.outcomes import read_outcomes


def compare_files(
    first: Path, second: Path, of: Literal["correct", "rewards"] = "correct", level: float = 0.95, seed: int = 0
) -> Difference:
    """How much better the second is, problem by problem.

    Args:
        first, second: as `test` writes them (`test/step_N.jsonl`: `id`, `correct`, `rewards`, perhaps `cluster`), or
            `predict`.
        of: `correct` (a response without a verdict is not right) or `rewards` (it is left out).
        level: of the interval.
        seed: of what is drawn for it.

    Raises:
        DataError: a file cannot be used, or they are not of the same problems.
        ConfigError: the level is no probability.
    """
    return compared(read_outcomes(first), read_outcomes(second), of, level, seed)
