"""Rollouts on disk: JSON lines for people and replays, tensors for resuming in the middle of an epoch."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from rlvr_lightning.errors import CheckpointError
from rlvr_lightning.types import Rollout, Row


def rollout_record(rollout: Rollout, advantage: float) -> dict[str, Any]:
    """One line of `version_N.jsonl.gz`."""
    verdict = rollout.verdict
    return {
        "policy_version": rollout.policy_version,
        "problem_id": rollout.prompt.problem.id,
        "prompt_index": rollout.prompt.index,
        "sample": rollout.sample,
        "messages": [dict(message) for message in rollout.prompt.problem.messages],
        "answer": rollout.prompt.problem.answer,
        "response": rollout.text,
        "finish_reason": rollout.generation.finish_reason,
        "reward": None if verdict is None else verdict.reward,
        "correct": None if verdict is None else verdict.correct,
        "extracted": None if verdict is None else verdict.extracted,
        "error": rollout.error,
        "advantage": advantage,
        "prompt_token_ids": list(rollout.prompt.token_ids),
        "token_ids": list(rollout.generation.token_ids),
        "logprobs": [round(value, 6) for value in rollout.generation.logprobs],
    }


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a whole file or none: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with gzip.open(partial, "wt", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.replace(path)


def save_buffer(path: Path, steps: Sequence[Sequence[Row]], report: dict[str, float], policy_version: int) -> None:
    """Keep an epoch's rows and report, replacing the last epoch's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    tensors = [[{item.name: getattr(row, item.name) for item in fields(row)} for row in step] for step in steps]
    torch.save({"policy_version": policy_version, "report": report, "steps": tensors}, partial)
    partial.replace(path)


def load_buffer(path: Path, policy_version: int) -> tuple[list[list[Row]], dict[str, float]]:
    """The rows and the report of the epoch that began at `policy_version`.

    Raises:
        CheckpointError: they are not there, or are another epoch's.
    """
    if not path.exists():
        raise CheckpointError(f"cannot resume in the middle of an epoch: {path} is missing")
    held = torch.load(path, weights_only=True)
    if held["policy_version"] != policy_version:
        raise CheckpointError(
            f"cannot resume in the middle of an epoch: {path} holds the rollouts of policy version "
            f"{held['policy_version']}, the checkpoint needs {policy_version}"
        )
    return [[Row(**tensors) for tensors in step] for step in held["steps"]], held["report"]
