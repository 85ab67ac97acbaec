"""The optimizer, its learning rate over the run, and what makes a step of it.

The configuration in force says the numbers; a checkpoint keeps state alone (`state` of the optimizer, the scheduler's
`last_epoch`), and `enforce` puts the numbers back after one was loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rlvr_lightning.errors import ConfigError, MissingDependencyError

OptimizerName = Literal["adamw", "adamw_8bit", "adamw_paged"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class OptimSettings:
    """AdamW with a linear warm-up, then a constant or falling rate.

    Args:
        lr: largest learning rate.
        weight_decay: decoupled.
        betas: of AdamW.
        warmup_steps: optimizer steps up to `lr`: step n of them (from 0) takes `lr` (n + 1) / `warmup_steps`.
        grad_clip: largest global gradient norm; None for no bound.
        name: `adamw` (torch's, fused on a GPU), `adamw_8bit` (state in 8 bits) or `adamw_paged` (state moves to the
            host's memory where the device's is short), the last two by bitsandbytes.
        schedule: after the warm-up `constant`, or falling to 0 at the end of the run: `linear` or `cosine`.

    Raises:
        ConfigError: a setting is out of range or unknown.
    """

    lr: float = 2e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    grad_clip: float | None = 1.0
    name: OptimizerName = "adamw"
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay), ("warmup_steps", self.warmup_steps)):
            if not value >= 0:
                raise ConfigError(f"optim.{name} must be at least 0; got {value}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas must be two numbers in [0, 1); got {list(self.betas)}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(f"optim.grad_clip must be above 0 or null; got {self.grad_clip}")
        for name, got, known in (("name", self.name, OptimizerName), ("schedule", self.schedule, Schedule)):
            if got not in get_args(known):
                raise ConfigError(f"optim.{name} must be one of {', '.join(get_args(known))}; got {got}")

    def factor(self, step: int, total_steps: int) -> float:
        """Share of `lr` an optimizer step (from 0) of `total_steps` is taken with."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1))
        if self.schedule == "linear":
            return 1.0 - done
        return 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0


def make_optimizer(settings: OptimSettings, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The optimizer over these parameters.

    Raises:
        ConfigError: it cannot step sharded weights.
        MissingDependencyError: its package is not installed.
    """
    numbers: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, fused=all(p.is_cuda for p in parameters), **numbers)
    if any(not isinstance(p, nn.Parameter) or type(p.data) is not Tensor for p in parameters):
        raise ConfigError(
            f"optim.name={settings.name} cannot step sharded weights: strategy=fsdp shares the optimizer's state out "
            "over the ranks, and strategy.cpu_offload=true keeps it in the host's memory: set optim.name=adamw"
        )
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingDependencyError(
            f"optim.name={settings.name} needs bitsandbytes, which is not installed: "
            "pip install 'rlvr-lightning[optim]', or set optim.name=adamw"
        ) from error
    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "adamw_paged": bitsandbytes.optim.PagedAdamW}
    made: Optimizer = kinds[settings.name](parameters, **numbers)
    return made


def make_schedule(settings: OptimSettings, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The learning rate of each optimizer step of a run of `total_steps`; its only state is the number of steps done."""
    return LambdaLR(optimizer, _factors(settings, total_steps))


def _factors(settings: OptimSettings, total_steps: int) -> Callable[[int], float]:
    return lambda step: settings.factor(step, total_steps)


def enforce(settings: OptimSettings, optimizer: Optimizer, schedule: LambdaLR) -> None:
    """Put the settings' numbers back where loading a checkpoint has set those of the run that wrote it."""
    schedule.base_lrs = [settings.lr] * len(optimizer.param_groups)
    factor = schedule.lr_lambdas[0](schedule.last_epoch)
    schedule._last_lr = [settings.lr * factor] * len(optimizer.param_groups)
    for group in optimizer.param_groups:
        group |= {"betas": settings.betas, "weight_decay": settings.weight_decay}
        group |= {"initial_lr": settings.lr, "lr": settings.lr * factor}


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Global 2-norm of the gradients, over the shards of all ranks: then a collective. 0 where there are none."""
    from torch.distributed.tensor import DTensor

    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
