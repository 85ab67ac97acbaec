"""Settings of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from rlvr_lightning.errors import ConfigError


@dataclass(frozen=True)
class OptimSettings:
    """AdamW with a linear warm-up to a constant rate.

    Args:
        lr: learning rate.
        weight_decay: decoupled.
        betas: of AdamW.
        warmup_steps: optimizer steps from 0 to `lr`.
        grad_clip: largest global gradient norm; None for no bound.

    Raises:
        ConfigError: a number is out of range.
    """

    lr: float = 2e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    grad_clip: float | None = 1.0

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay), ("warmup_steps", self.warmup_steps)):
            if not value >= 0:
                raise ConfigError(f"optim.{name} must be at least 0; got {value}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(f"optim.grad_clip must be above 0 or null; got {self.grad_clip}")
