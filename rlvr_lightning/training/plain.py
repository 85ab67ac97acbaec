"""A run's state that is no tensor of the model, as JSON has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlvr_lightning.training.shards import DTYPES

NAMED = {name: dtype for dtype, name in DTYPES.items()}
# Keys of what stands for a value that JSON does not know.
MARKED = ({"float"}, {"tensor", "dtype"})


def plain(value: Any) -> Any:
    """As JSON has it, which knows no infinity and no nan: they become {"float": "inf"}; small tensors, as callbacks of Lightning
    keep them, {"tensor": [...], "dtype": "F32"}.
    """
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), (
            f"keys of a checkpoint's state are strings; got {list(value)}"
        )
        assert set(value) not in MARKED, f"a mapping of {', '.join(value)} alone is a value that JSON does not know"
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return {"tensor": plain(value.tolist()), "dtype": DTYPES[value.dtype]}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    assert value is None or type(value) in (bool, int, float, str), f"a checkpoint's state is plain data; got {value!r}"
    return value


def unplain(value: Any) -> Any:
    """What `plain` was given, from what JSON gave back."""
    if isinstance(value, dict):
        if set(value) not in MARKED:
            return {key: unplain(item) for key, item in value.items()}
        if "float" in value:
            return float(value["float"])
        return torch.tensor(unplain(value["tensor"]), dtype=NAMED[value["dtype"]])
    return [unplain(item) for item in value] if isinstance(value, list) else value
