"""What is left of a measurement: numbers for programs, and a line a problem for comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr_lightning.evaluation.benchmarks.results import Measured
from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.tasks.outcomes import outcome_lines


def write_measured(folder: Path, measured: Measured, about: Mapping[str, Any]) -> None:
    """`NAME.json` and `NAME.jsonl`.

    Args:
        folder: of the policy's results.
        measured: on one benchmark.
        about: which policy.
    """
    content = {**about, **measured.record()}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / f"{measured.name}.json", text.encode())
    write_whole(folder / f"{measured.name}.jsonl", outcome_lines(measured.problems))
