"""What a checkpoint holds of a run: tensors by name, plain data, and both put back."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlvr_lightning.training.checkpoint_io import WEIGHTS, read_state, read_tensors
from rlvr_lightning.training.progress import Progress
from rlvr_lightning.training.shards import saved_tensors


def run_tensors(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Tensor]:
    """What is trained, a reference that moves, the optimizer's state, and this rank's random state; the run's own, not copies."""
    names = {id(weight): name for name, weight in trained(module)}
    tensors = {f"policy.{name}": weight.detach() for name, weight in trained(module)}
    tensors.update(_reference(module))
    for optimizer in trainer.optimizers:
        for weight, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{names[id(weight)]}.{key}"] = value
    tensors.update({f"random.{trainer.global_rank}.{name}": value for name, value in _random_state(module).items()})
    return tensors


def run_state(trainer: L.Trainer, module: L.LightningModule, progress: Progress) -> dict[str, Any]:
    """What is no tensor, as plain data."""
    held: dict[str, Any] = {}
    module.on_save_checkpoint(held)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    states = {callback.state_key: callback.state_dict() for callback in callbacks}
    data = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
    return {
        "progress": progress.state_dict(),
        "world_size": trainer.world_size,
        "module": held,
        "data": data,
        "callbacks": {key: state for key, state in states.items() if state},
        "optimizer": _optimizer_numbers(trainer, module),
        "schedulers": [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs],
    }


def _optimizer_numbers(trainer: L.Trainer, module: L.LightningModule) -> dict[str, dict[str, Any]]:
    """What some optimizers count for each weight and keep as a plain number, by the weight's name."""
    names = {id(weight): name for name, weight in trained(module)}
    states = {names[id(w)]: state for optimizer in trainer.optimizers for w, state in optimizer.state.items()}
    plain = {name: {k: v for k, v in state.items() if not isinstance(v, Tensor)} for name, state in states.items()}
    return {name: numbers for name, numbers in plain.items() if numbers}


def trained(module: L.LightningModule) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Weights that learn: all of the policy, or its adapters. What is frozen stays in its folder."""
    policy: Any = module.policy
    return ((name, weight) for name, weight in policy.named_parameters() if weight.requires_grad)


def _reference(module: L.LightningModule) -> dict[str, Tensor]:
    reference: Any = module.reference
    tensors: dict[str, Tensor] = reference.tensors()
    return tensors


def restore_policy(module: L.LightningModule, checkpoint: Path, group: ProcessGroup | None) -> dict[str, Any]:
    """Weights and the module's own state, for any verb; gives back the rest.

    Raises:
        CheckpointError: it cannot be read, or is another run's.
    """
    state = read_state(checkpoint)
    module.on_load_checkpoint(state["module"])
    read_tensors(checkpoint, {f"policy.{name}": weight.detach() for name, weight in trained(module)}, group)
    return state


def restore_run(trainer: L.Trainer, module: L.LightningModule, checkpoint: Path, group: ProcessGroup | None) -> None:
    """Everything of a run that goes on: also optimizer, schedules, loops, data, callbacks and random state.

    Numbers that are settings (learning rate, betas, schedule) stay those of the configuration in force.

    Raises:
        CheckpointError: it cannot be read, or is another run's.
    """
    state = restore_policy(module, checkpoint, group)
    read_tensors(checkpoint, _reference(module), group)
    trainer.datamodule.load_state_dict(state["data"])  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    for optimizer in trainer.optimizers:
        _restore_optimizer(optimizer, module, state["optimizer"], checkpoint, group)
    for config, steps in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        _advance(config.scheduler, steps)
    Progress(**state["progress"]).restore(trainer)
    _restore_random_state(module, checkpoint, trainer.global_rank)


def _advance(scheduler: Any, steps: int) -> None:
    """Go through a schedule again, so that one changed since is in force from here on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before.*")
        for _ in range(steps):
            scheduler.step()


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    module: L.LightningModule,
    numbers: dict[str, dict[str, Any]],
    checkpoint: Path,
    group: ProcessGroup | None,
) -> None:
    saved, tensors = saved_tensors(checkpoint / WEIGHTS), {}
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in numbers.items()}
    by_name = dict(trained(module))
    for full, (shape, dtype) in saved.items():
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            weight = by_name[name].detach()
            # Moments are laid out like their weight, counters are not.
            value = (
                torch.zeros_like(weight, dtype=dtype)
                if shape == tuple(weight.shape)
                else torch.zeros(shape, dtype=dtype)
            )
            states.setdefault(name, {})[key] = tensors[full] = value
    read_tensors(checkpoint, tensors, group)
    positions = {id(weight): index for index, weight in enumerate(_in_order(optimizer))}
    held = {positions[id(by_name[name])]: values for name, values in states.items()}
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_order(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _random_state(module: L.LightningModule) -> dict[str, Tensor]:
    _, numbers, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(numbers, dtype=torch.int64),
        # The second of a pair of Gaussian numbers, where the first was drawn.
        "gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
    }
    if module.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(module.device)
    return states


def _restore_random_state(module: L.LightningModule, checkpoint: Path, rank: int) -> None:
    """This rank's, where as many ranks wrote the checkpoint."""
    saved = saved_tensors(checkpoint / WEIGHTS)
    prefix = f"random.{rank}."
    held = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in saved.items() if name.startswith(prefix)}
    if not held:
        return
    read_tensors(checkpoint, held)
    states = {name.removeprefix(prefix): value for name, value in held.items()}
    torch.set_rng_state(states["torch"])
    gauss = float(states["gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    if "cuda" in states and module.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], module.device)


def host_group(trainer: L.Trainer) -> ProcessGroup | None:
    """All ranks on the CPU, apart from the group that training uses; None for one process."""
    if trainer.world_size == 1:
        return None
    group: ProcessGroup = torch.distributed.new_group(backend="gloo")
    return group
