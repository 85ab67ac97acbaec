"""Tensors of many shapes and kinds, read back from checkpoints and compared."""

from __future__ import annotations

from pathlib import Path

import torch

from rlvr_lightning.training import checkpoint_io as io
from rlvr_lightning.training.shards import saved_tensors

SHAPES = {"even": (8, 3), "odd": (7, 5), "single": (1, 4), "row": (9,), "scalar": ()}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made["half"] = torch.randn(5, generator=generator).bfloat16()
    made["bytes"] = torch.randint(256, (11,), generator=generator, dtype=torch.uint8)
    made["long"] = torch.tensor([-1, 2**60])
    return made


def read(checkpoint: Path) -> dict[str, torch.Tensor]:
    held = saved_tensors(checkpoint / io.WEIGHTS)
    into = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in held.items()}
    io.read_tensors(checkpoint, into)
    return into


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name
