"""What a line of the screen says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from rlvr_lightning.callbacks.screen import _numbers
from rlvr_lightning.rollout.timeline import told


def test_an_epochs_line_says_where_the_time_went() -> None:
    metrics = {
        "reward/mean": 0.5,
        "rollout/accuracy": 0.25,
        "rollout/responses": 10.0,
        "rollout/response_tokens": 30.0,
        "policy/entropy/all": 0.125,
        "perf/time/sampling": 5.0,
        "perf/time/waiting": 2.0,
        "perf/time/updating": 2.8,
        "perf/time/other": 0.2,
    }
    objective = SimpleNamespace(partitioner=SimpleNamespace(parts=("all",)))
    line = _numbers(cast(Any, SimpleNamespace(epoch_metrics=metrics, objective=objective)), 10.0)
    assert line == "reward 0.500  acc 0.250  H all 0.125  30 tok/s  sampling 50%, updating 28%, waiting 20%"


def test_shares_are_of_the_whole() -> None:
    assert told({"sampling": 1.0, "updating": 3.0, "other": 0.01}) == "updating 75%, sampling 25%"
    assert told({"sampling": 0.0}) == told({}) == ""
