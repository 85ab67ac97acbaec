"""Rollouts as records of plain values, and those of `predict` as JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.types import Rollout, Row


def rollout_record(rollout: Rollout, advantage: float | None) -> dict[str, Any]:
    """What is kept of a response; without an advantage where nothing is learned from it."""
    verdict = rollout.verdict
    return {
        "policy_version": rollout.policy_version,
        "problem_id": rollout.prompt.problem.id,
        "prompt_index": rollout.prompt.index,
        "sample": rollout.sample,
        "messages": [dict(message) for message in rollout.prompt.problem.messages],
        "answer": rollout.prompt.problem.answer,
        "response": rollout.text,
        "finish_reason": rollout.episode.finish_reason,
        "verdict": rollout.kind,
        "reward": None if verdict is None else verdict.reward,
        "correct": None if verdict is None else verdict.correct,
        "extracted": None if verdict is None else verdict.extracted,
        "parts": None if verdict is None or verdict.parts is None else dict(verdict.parts),
        "error": rollout.error,
        "advantage": advantage,
        "prompt_token_ids": list(rollout.prompt.token_ids),
        "token_ids": list(rollout.episode.token_ids),
        "written": list(rollout.episode.written),
        "logprobs": list(rollout.episode.logprobs),
    }


def phase_records(rollouts: Sequence[Sequence[Rollout]], steps: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Lines of a phase's rollouts and their rows, optimizer step by optimizer step."""
    return [
        rollout_record(rollout, float(row.advantages.sum() / row.loss_mask.sum().clamp(min=1)))
        for group, step in zip(rollouts, steps, strict=True)
        for rollout, row in zip(group, step, strict=True)
    ]


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a whole file or none: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with gzip.open(partial, "wt", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.replace(path)
