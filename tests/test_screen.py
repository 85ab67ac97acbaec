"""What a line of the screen says."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from rlvr_lightning.callbacks.screen import ScreenCallback, _numbers
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


@pytest.mark.parametrize(("width", "kept"), [(60, "rewa"), (80, "reward 0.500  acc 0.250 "), (130, "xxxx")])
def test_a_narrow_terminal_cuts_the_numbers_alone(width: int, kept: str) -> None:
    screen, shown = ScreenCallback(), io.StringIO()
    screen.console = Console(width=width, force_terminal=True, file=shown, color_system=None)
    screen._open(cast(Any, SimpleNamespace(is_global_zero=True, max_epochs=40)))
    assert screen._progress is not None
    screen._line = "reward 0.500  acc 0.250  " + "x" * 200
    screen._phase = "verifying"
    screen._progress.update(screen._progress.task_ids[0], completed=12)
    screen._refresh()
    screen._close()
    # The last line shows the cursor again.
    live = shown.getvalue().splitlines()[-2].removeprefix("\x1b[2K")
    assert len(live) == width
    assert live.startswith("epoch 12/40 ")
    assert " verifying rewa" in live
    assert live.endswith(" 0:00:00 -:--:--")
    assert f"{kept}\u2026 " in live
