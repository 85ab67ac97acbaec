"""A pytest plugin: which test executed a line, and how long each test took. Loaded with `-p mutation.recorder`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

SECONDS: dict[str, float] = {}
FAILED: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lines belong to the test, its fixtures included."""
    measured = coverage.Coverage.current()
    assert measured is not None, "run pytest under `coverage run`"
    measured.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        measured.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Set-up, call and tear-down together; a test that does not pass judges nobody."""
    SECONDS[report.nodeid] = SECONDS.get(report.nodeid, 0.0) + report.duration
    if not report.passed:
        FAILED.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Durations of the tests that passed, where the session asked for them."""
    passed = {name: round(seconds, 3) for name, seconds in SECONDS.items() if name not in FAILED}
    Path(os.environ["MUTATION_SECONDS"]).write_text(json.dumps(passed))
