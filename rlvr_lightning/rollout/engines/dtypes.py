"""What an engine samples in: a setting of its own, apart from what the trainer computes in."""

from __future__ import annotations

from typing import Literal

import torch

from rlvr_lightning.errors import ConfigError

EngineDtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype(name: str) -> None:
    """Is there such a dtype?

    Raises:
        ConfigError: there is not.
    """
    if name != "auto" and name not in DTYPES:
        raise ConfigError(f"engine.dtype must be auto, {', '.join(DTYPES)}; got {name}")


def engine_dtype(name: EngineDtype, trainers: torch.dtype) -> torch.dtype:
    """The engine's own, or with `auto` what the trainer computes in."""
    return trainers if name == "auto" else DTYPES[name]
