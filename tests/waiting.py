"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 0.02


def until(happened: Callable[[], object], seconds: float) -> bool:
    """Whether it happened in time, which is counted in looks: a machine that stands still stops the others as well."""
    for _ in range(int(seconds / LOOK_S)):
        if happened():
            return True
        time.sleep(LOOK_S)
    return bool(happened())
