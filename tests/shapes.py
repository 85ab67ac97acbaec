"""The run-time type checker of the shape tests: an int may stand where a float is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# The halves of a run come into being step by step: asked for all that these Protocols name, they would fail before the run is
# set up.
STEPWISE = {"RolloutData", "TrainedModule", "JoinedSettings"}

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checker(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result by their annotations."""
    named = {getattr(hint, "__name__", hint) for hint in function.__annotations__.values()}
    checked: Callable[..., Any] = function if named & STEPWISE else _checked(function)
    return checked
