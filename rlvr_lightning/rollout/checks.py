"""Refusing what makes no sense: settings alone, and settings against trainer and module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import AdvantageEstimator, TrainedModule
from rlvr_lightning.types import SamplingSpec

if TYPE_CHECKING:
    from rlvr_lightning.objective.objective import Objective


class RolloutSettings(Protocol):
    """The data module's settings, and whom it meets."""

    group_size: int
    prompts_per_epoch: int
    prompts_per_step: int
    passes: int
    generation_batches: int
    drop_equal_groups: bool
    top_p: float
    max_prompt_tokens: int
    overlong_prompts: Any
    eval_samples: int
    sampling: SamplingSpec
    trainer: Any

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a rollout phase."""
        ...

    @property
    def temperature(self) -> float:
        """Of sampling."""
        ...

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        ...

    @property
    def rlvr_module(self) -> TrainedModule:
        """The module being trained."""
        ...


def check_settings(data: RolloutSettings, advantage: AdvantageEstimator) -> None:
    """Settings of the data module.

    Raises:
        ConfigError: one is out of range or contradicts another.
    """
    least = getattr(advantage, "min_group_size", 1)
    checks = (
        (data.group_size >= least, f"group_size must be at least {least} for this advantage", data.group_size),
        (data.prompts_per_epoch >= 1, "prompts_per_epoch must be at least 1", data.prompts_per_epoch),
        (
            data.prompts_per_step >= 1 and data.prompts_per_epoch % data.prompts_per_step == 0,
            f"prompts_per_step must divide prompts_per_epoch={data.prompts_per_epoch}",
            data.prompts_per_step,
        ),
        (data.generation_batches >= 1, "generation_batches must be at least 1", data.generation_batches),
        (
            data.generation_batches == 1 or data.drop_equal_groups,
            "generation_batches above 1 needs drop_equal_groups=true: only dropped groups leave places to refill",
            data.generation_batches,
        ),
        (data.passes >= 1, "passes must be at least 1", data.passes),
        (data.sampling.temperature > 0, "temperature must be above 0", data.sampling.temperature),
        (data.top_p == 1, "top_p must be 1: what is scored is the whole distribution", data.top_p),
        (data.sampling.max_new_tokens >= 1, "max_new_tokens must be at least 1", data.sampling.max_new_tokens),
        (data.max_prompt_tokens >= 1, "max_prompt_tokens must be at least 1", data.max_prompt_tokens),
        (data.overlong_prompts in ("skip", "error"), "overlong_prompts: skip or error", data.overlong_prompts),
        (data.eval_samples >= 1, "eval_samples must be at least 1", data.eval_samples),
    )
    for holds, rule, got in checks:
        if not holds:
            raise ConfigError(f"rollout.{rule}; got {got}")


def check_fit(data: RolloutSettings) -> None:
    """Do trainer, module and data module agree?

    Raises:
        ConfigError: they do not.
    """
    assert data.trainer is not None
    if data.trainer.reload_dataloaders_every_n_epochs != 1:
        raise ConfigError("the Trainer needs reload_dataloaders_every_n_epochs=1, or it would learn from old rollouts")
    if data.rlvr_module.eval_samples != data.eval_samples:
        raise ConfigError(
            f"eval_samples is {data.eval_samples} in RolloutDataModule and {data.rlvr_module.eval_samples} in RLVRModule"
        )
    if data.rlvr_module.temperature != data.temperature:
        raise ConfigError(
            f"sampling at temperature {data.temperature} and scoring at {data.rlvr_module.temperature} are different "
            "policies: set rollout.temperature alone"
        )
    check_on_policy(data, data.rlvr_module.objective)
    if data.prompts_per_step % data.ranks[1]:
        raise ConfigError(
            f"rollout.prompts_per_step={data.prompts_per_step} must be a multiple of the {data.ranks[1]} ranks"
        )


def check_on_policy(data: RolloutSettings, objective: Objective) -> None:
    """Do several optimizer steps learn from a phase although something allows for one alone?

    Raises:
        ConfigError: they do.
    """
    only = objective.on_policy_only
    if only and data.steps_per_epoch > 1:
        raise ConfigError(
            f"{only[0]} makes sense only on-policy, but {data.steps_per_epoch} optimizer steps learn from each rollout "
            "phase: set rollout.prompts_per_step=null and rollout.passes=1"
        )
