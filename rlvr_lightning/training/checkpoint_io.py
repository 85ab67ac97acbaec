"""Reading checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlvr_lightning.errors import CheckpointError


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint file's content.

    Raises:
        CheckpointError: it cannot be read, or was not written by this package.
    """
    try:
        held = torch.load(checkpoint, map_location="cpu", weights_only=False)
    except Exception as error:
        raise CheckpointError(f"{checkpoint} is no readable checkpoint: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(held, dict) or "rlvr" not in held or "state_dict" not in held:
        raise CheckpointError(f"{checkpoint} was not written by rlvr_lightning")
    return held
