"""Responses cut by their length: learned from, or left out and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training import fit, recorded

SHORT = ("rollout.max_new_tokens=29", "trainer.max_epochs=1", "optim.lr=0")


def drawn(folder: Path) -> list[dict[str, Any]]:
    return recorded(folder, 0)


def test_a_run_leaves_cut_responses_out_and_says_how_many(tmp_path: Path) -> None:
    kept, masked = fit(tmp_path / "keep", *SHORT), fit(tmp_path / "mask", *SHORT, "rollout.truncated=mask")
    records, others = drawn(tmp_path / "keep"), drawn(tmp_path / "mask")
    cut = {(row["prompt_index"], row["sample"]) for row in records if row["finish_reason"] == "length"}
    everyone = {(row["prompt_index"], row["sample"]) for row in records}
    assert 3 < len(cut) < len(everyone) - 3
    for run, expected, number in ((kept, everyone, 0), (masked, everyone - cut, len(cut))):
        assert {(row.prompt_index, row.sample) for step in run.data.steps for row in step} == expected
        assert run.data.report["rollout/masked"] == number
        assert run.data.report["rollout/truncated"] == len(cut) / len(everyone)
    # The others' advantages are what they were: the cut ones count in their groups.
    for before, after in zip(records, others, strict=True):
        name = before["prompt_index"], before["sample"]
        assert after["advantage"] == (0 if name in cut else before["advantage"])
    assert any(row["advantage"] for row in records if (row["prompt_index"], row["sample"]) in cut)
