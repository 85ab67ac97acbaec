"""A gap between engine and trainer that grows is told, once for each doubling."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from training import SMALL

from rlvr_lightning.callbacks.drift import DriftWarning
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose


def told(callback: DriftWarning, gaps: list[float], caplog: pytest.LogCaptureFixture, **more: float) -> list[str]:
    """What is said of epochs with these gaps, of which the first is epoch 1."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for epoch, gap in enumerate(gaps):
            metrics = {"rollout/logprob_gap": gap, **more}
            trainer = SimpleNamespace(is_global_zero=True, current_epoch=epoch)
            callback.on_train_epoch_end(cast(Any, trainer), cast(Any, SimpleNamespace(epoch_metrics=metrics)))
    return [record.getMessage() for record in caplog.records]


def test_each_doubling_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    said = told(DriftWarning(), [0.01] * 6 + [0.03] * 6 + [0.09] * 4, caplog)
    # Means of five: above 0.02 once three of them are 0.03, above 0.044 once two more are 0.09.
    assert said == [
        "engine and trainer drift apart: rollout/logprob_gap was 0.022 nats in the mean of epochs 5 to 9, 0.01 before: see "
        "correction=tis and rollout.canary_tolerance",
        "engine and trainer drift apart: rollout/logprob_gap was 0.054 nats in the mean of epochs 10 to 14, 0.022 before: "
        "see correction=tis and rollout.canary_tolerance",
    ]


def test_what_nobody_notices_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert told(DriftWarning(), [1e-6] * 5 + [9e-4] * 9, caplog) == []
    # One epoch among others neither.
    assert told(DriftWarning(), [0.01] * 5 + [0.05] + [0.01] * 5, caplog) == []


def test_the_canary_is_watched_where_old_log_probabilities_are_the_engines(caplog: pytest.LogCaptureFixture) -> None:
    callback = DriftWarning()
    assert told(callback, [0.0] * 5, caplog, **{"rollout/canary_gap": 0.01}) == []
    (said,) = told(callback, [0.0] * 3, caplog, **{"rollout/canary_gap": 0.03})
    assert "rollout/canary_gap was 0.022 nats" in said


def test_a_resumed_run_goes_on_comparing(caplog: pytest.LogCaptureFixture) -> None:
    first, second = DriftWarning(), DriftWarning()
    told(first, [0.01] * 6, caplog)
    second.load_state_dict(first.state_dict())
    assert len(told(second, [0.03] * 3, caplog)) == 1
    assert told(DriftWarning(), [0.03] * 3, caplog) == []


def test_every_run_is_watched(tmp_path: Path) -> None:
    run = build_run(compose([*SMALL, "conf=grpo", "rollout.prompts_per_step=8", f"output_dir={tmp_path}"]))
    callbacks: list[Any] = run.trainer.callbacks  # type: ignore[attr-defined]
    assert sum(isinstance(callback, DriftWarning) for callback in callbacks) == 1
