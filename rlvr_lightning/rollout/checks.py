"""Refusing what makes no sense: settings alone, and settings against trainer and module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.protocols import AdvantageEstimator, ApartEngine, TrainedModule
from rlvr_lightning.rollout.canary import check_tolerance
from rlvr_lightning.types import Row, SamplingSpec

if TYPE_CHECKING:
    from rlvr_lightning.objective.objective import Objective


@runtime_checkable
class RolloutSettings(Protocol):
    """The data module's settings."""

    group_size: int
    prompts_per_epoch: int
    prompts_per_step: int
    passes: int
    generation_batches: int
    drop_equal_groups: bool
    top_p: float
    max_prompt_tokens: int
    overlong_prompts: Any
    packing: Any
    truncated: Any
    eval_samples: int
    sampling: SamplingSpec
    engine: Any
    max_lag: int
    exact_seeds: Any
    canary_tolerance: Any

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a rollout phase."""
        ...

    @property
    def temperature(self) -> float:
        """Of sampling."""
        ...


@runtime_checkable
class JoinedSettings(RolloutSettings, Protocol):
    """The same once the data module has met its trainer."""

    trainer: Any

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
        (data.packing in ("auto", True, False), "packing: auto, true or false", data.packing),
        (data.truncated in ("keep", "mask"), "truncated: keep or mask", data.truncated),
        (data.eval_samples >= 1, "eval_samples must be at least 1", data.eval_samples),
        (data.max_lag >= 0, "max_lag must be at least 0", data.max_lag),
        (
            data.max_lag == 0 or isinstance(data.engine, ApartEngine),
            "max_lag above 0 needs an engine that draws in processes of its own: engine=vllm_server",
            data.max_lag,
        ),
        (data.exact_seeds in ("auto", True, False), "exact_seeds: auto, true or false", data.exact_seeds),
    )
    for holds, rule, got in checks:
        if not holds:
            raise ConfigError(f"rollout.{rule}; got {got}")
    check_tolerance(data.canary_tolerance)


def check_fit(data: JoinedSettings) -> None:
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


def prompt_limit(data: RolloutSettings, positions: int | None) -> int:
    """Tokens a prompt may have so that prompt and response fit the model.

    Args:
        data: the settings.
        positions: that the model has; None for no bound.

    Raises:
        ConfigError: there is no room for a prompt.
    """
    if positions is None:
        return data.max_prompt_tokens
    if positions <= data.sampling.max_new_tokens:
        raise ConfigError(
            f"rollout.max_new_tokens={data.sampling.max_new_tokens} leaves no room for a prompt: the model has "
            f"{positions} positions"
        )
    return min(data.max_prompt_tokens, positions - data.sampling.max_new_tokens)


def phase_settings(data: RolloutSettings) -> dict[str, Any]:
    """What a phase under way was drawn with, as plain data."""
    names = ("group_size", "prompts_per_epoch", "prompts_per_step", "passes", "temperature", "steps_per_epoch")
    return {name: getattr(data, name) for name in names}


def check_resumed(data: JoinedSettings, state: Mapping[str, Any], order: str) -> None:
    """May a run go on from a checkpoint under these settings?

    Args:
        data: the settings in force.
        state: the data module's of the checkpoint.
        order: names the order of the prompts in force.

    Raises:
        CheckpointError: its books or its order would be another run's.
    """
    if state["order"] != order:
        raise CheckpointError(
            "the prompts, or their order, are not those the run began with: task, seed, tokenizer and the longest prompt "
            "(rollout.max_prompt_tokens, overlong_prompts) decide them"
        )
    before, now = state["settings"], phase_settings(data)
    if now["steps_per_epoch"] != before["steps_per_epoch"]:
        raise CheckpointError(
            f"a run keeps its optimizer steps an epoch, by which schedules count: they were {before['steps_per_epoch']}, "
            f"with rollout.prompts_per_epoch, prompts_per_step and passes as given they would be {now['steps_per_epoch']}"
        )
    done = state["policy_version"] - state["buffer_version"]
    if state["buffer_version"] >= 0 and 0 < done < before["steps_per_epoch"]:
        for name, value in before.items():
            if now[name] != value:
                raise CheckpointError(
                    f"rollout.{name} cannot be changed in the middle of an epoch ({done} of {before['steps_per_epoch']} "
                    f"steps are done), whose responses were drawn with {value}: go on without it to the epoch's end first"
                )


def check_scored(rows: Iterable[Row], objective: Objective) -> None:
    """Can the objective learn from rows that were scored in another session?

    Raises:
        CheckpointError: they lack what its components need by now.
    """
    row = next(iter(rows), None)
    if row is None:
        return
    needed = {item.name for item in objective.requires if {"rollout", "reference"} & set(item.passes)}
    lacking = sorted(needed - row.old_statistics.keys())
    if objective.requires_ref and row.ref_logprobs is None:
        lacking.append("log-probabilities of the reference")
    if lacking:
        raise CheckpointError(
            f"a setting cannot be changed in the middle of an epoch: its responses were scored without {lacking[0]}; go on "
            "without the change to the epoch's end first"
        )


def check_on_policy(data: RolloutSettings, objective: Objective) -> None:
    """Do several optimizer steps learn from a phase although something allows for one alone?

    Raises:
        ConfigError: they do.
    """
    only = objective.on_policy_only
    if only and data.max_lag > 0:
        raise ConfigError(f"{only[0]} makes sense only on-policy: set rollout.max_lag=0")
    if only and data.steps_per_epoch > 1:
        raise ConfigError(
            f"{only[0]} makes sense only on-policy, but {data.steps_per_epoch} optimizer steps learn from each rollout "
            "phase: set rollout.prompts_per_step=null and rollout.passes=1"
        )


def needs_no_old_pass(data: RolloutSettings, objective: Objective, *, ahead: bool) -> bool:
    """Whether the policy at the start of the update says nothing of a phase that is not known anyway.

    Args:
        data: the settings.
        objective: says what is needed.
        ahead: the responses were drawn by other policies.
    """
    statistics = any("rollout" in item.passes for item in objective.requires)
    return data.steps_per_epoch == 1 and not (ahead and statistics)
