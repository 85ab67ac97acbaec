"""What data classes hold: a report is of its sums, and values stay."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import torch

import rlvr_lightning
from rlvr_lightning.rollout.collector import RolloutReport


def test_a_report_is_of_its_sums() -> None:
    report = RolloutReport()
    totals = {"responses": 40, "graded": 32, "reward": 8.0, "tokens": 500, "truncated": 10}
    totals |= {
        "dropped": 5,
        "groups": 16,
        "equal_groups": 6.0,
        "ranks": 4,
        "batches": 12,
        "refilled": 7,
        "masked": 2,
        "lag": 60.0,
    }
    totals |= {
        "correct": 4,
        "kind/correct": 4,
        "kind/wrong": 20,
        "kind/unparsable": 8,
        "kind/timeout": 2,
        "kind/error": 6,
    }
    for name, value in (totals | {"sampling_s": 8.0, "verifying_s": 6.0, "shaped": -4.0}).items():
        report.add(name, value / 2)
        report.add(name, value / 2)
    assert report.metrics(torch.device("cpu")) == {
        "reward/mean": 0.25,
        "reward/shaped": -0.125,
        "rollout/accuracy": 0.125,
        "rollout/responses": 40,
        "rollout/response_tokens": 12.5,
        "rollout/truncated": 0.25,
        "rollout/equal_groups": 0.375,
        "rollout/masked": 2,
        "rollout/lag": 1.5,
        "rollout/dropped": 5,
        "rollout/generation_batches": 3,
        "rollout/refilled_groups": 7,
        "verifier/correct": 0.1,
        "verifier/wrong": 0.5,
        "verifier/unparsable": 0.2,
        "verifier/timeout": 0.05,
        "verifier/error": 0.15,
        # 500 tokens in 8 seconds of four ranks, each at work for two of them
        "perf/sampling_tokens_per_s": 250.0,
        "perf/verifying_s": 1.5,
    }
    empty = RolloutReport(dict.fromkeys(totals | {"sampling_s": 0.0, "verifying_s": 0.0}, 0.0) | {"ranks": 1.0})
    assert set(empty.metrics(torch.device("cpu")).values()) == {0.0}


def test_values_do_not_change() -> None:
    """Every data class is frozen, but for the sums of a phase and of a program's tests, and what ranks tell each other."""
    folder = [str(Path(rlvr_lightning.__file__).parent)]
    found: dict[str, bool] = {}
    for module in pkgutil.walk_packages(folder, "rlvr_lightning."):
        # The last one is vLLM's to import.
        if module.name.endswith(("__main__", "math_worker", "vllm.worker")):
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.name:
                found[name] = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert len(found) > 20
    assert {name for name, frozen in found.items() if not frozen} == {"RolloutReport", "Outcome", "Guest"}
