"""What a run computes in. Weights, gradients' sums and optimizer state are float32 whatever it is."""

from __future__ import annotations

from typing import Literal

import torch

from rlvr_lightning.errors import ConfigError

Precision = Literal["32-true", "bf16-mixed"]
COMPUTE: dict[str, torch.dtype] = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under a precision.

    Args:
        precision: `32-true` or `bf16-mixed`, as `trainer.precision` and Lightning's Trainer call them.

    Raises:
        ConfigError: another one.
    """
    if precision == "16-mixed":
        raise ConfigError(
            "trainer.precision=16-mixed is refused: float16 needs its loss scaled, while the gradient's norm, its "
            "clipping and the steps left out must see the unscaled one; bf16-mixed has float32's range and needs no "
            "scaling: set trainer.precision=bf16-mixed"
        )
    if precision not in COMPUTE:
        raise ConfigError(
            f"trainer.precision must be {' or '.join(COMPUTE)}; got {precision}: weights and optimizer state are "
            "float32, bf16-mixed computes the model's products in bfloat16"
        )
    return COMPUTE[precision]
