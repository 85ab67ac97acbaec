"""A trace of one epoch, with the run's phases in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from training import fit


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_trace_holds_an_epoch_under_its_phases(epochs: int, tmp_path: Path) -> None:
    fit(tmp_path, "trainer.profile=true", f"trainer.max_epochs={epochs}", "trainer.val_every_n_epochs=1")
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {"sampling", "verifying", "updating"} <= set(named)
    assert any(event.get("cat") == "cpu_op" for event in events)
    # The engine starts in the first epoch alone.
    assert ("starting" in named) == (epochs == 1)


def test_without_it_there_is_none(tmp_path: Path) -> None:
    fit(tmp_path, "trainer.max_epochs=1")
    assert not (tmp_path / "trace.json.gz").exists()
