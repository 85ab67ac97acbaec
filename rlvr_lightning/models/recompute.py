"""Activation checkpointing of decoder layers: what they keep for the backward pass is made again instead.

transformers does it in `training` mode alone, and a policy is always in `eval` mode: a sampled token must have the same
probability each time it is scored. Nothing here depends on the mode, and no module or parameter changes its name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from rlvr_lightning.errors import ConfigError


def every_nth(setting: str | int | bool) -> int:
    """The n of "every n-th layer is recomputed"; 0 for none.

    Args:
        setting: `none`, `full`, or the number itself; True is `full` and False `none`.

    Raises:
        ConfigError: anything else.
    """
    if setting in ("none", "full") or isinstance(setting, bool):
        return int(setting == "full" or setting is True)
    if not isinstance(setting, int) or setting < 1:
        raise ConfigError(
            f"model.gradient_checkpointing must be none, full, or n to recompute every n-th layer; got {setting!r}"
        )
    return setting


def recompute(layers: nn.ModuleList, setting: str | int | bool) -> None:
    """Have every n-th layer, from the first, keep its input alone and run once more in the backward pass."""
    step = every_nth(setting)
    for layer in layers[::step] if step else ():
        layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)  # transformers reads signatures
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        # No dropout, so no random state to keep; torch keeps autocast's.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return recomputing
