"""What draws a run's responses, put together from the data module's settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import AdvantageEstimator, RewardShaping, Task, Verifier
from rlvr_lightning.rollout import checks
from rlvr_lightning.rollout.canary import PROMPTS, Canary
from rlvr_lightning.rollout.collector import Collector
from rlvr_lightning.rollout.gathering import is_first_rank
from rlvr_lightning.rollout.keeping import Keeper
from rlvr_lightning.rollout.pipeline import Pipeline
from rlvr_lightning.rollout.prompts import PromptSource
from rlvr_lightning.rollout.refill import StepCut
from rlvr_lightning.rollout.synced import SyncedEngine
from rlvr_lightning.types import Prompt, SamplingSpec
from rlvr_lightning.verifiers.grading import Grading

log = logging.getLogger(__name__)

ExactSeeds = bool | Literal["auto"]


@runtime_checkable
class AssembledSettings(checks.JoinedSettings, Protocol):
    """Of the data module: what its parts are made of."""

    source: ModelSource
    task: Task
    verifier: Verifier
    advantage: AdvantageEstimator
    shaping: RewardShaping | None
    grading: Grading
    seed: int
    output_dir: Path | None

    def phase(self, name: str) -> None:
        """Tell what is going on."""
        ...


@dataclass(frozen=True)
class RolloutParts:
    """Of a data module, once it has met its trainer.

    Args:
        held_out: prompts to validate on.
        longest: of all prompts [tokens].
        sampling: as responses are drawn.
        synced: the engine, kept at the policy's newest weights.
        canary: compares the two.
        collector: draws and grades groups.
        pipeline: phase after phase.
        keeper: writes them; None where nothing is written.
        order: a name of the endless order of prompts.
    """

    held_out: list[Prompt]
    longest: int
    sampling: SamplingSpec
    synced: SyncedEngine
    canary: Canary
    collector: Collector
    pipeline: Pipeline
    keeper: Keeper | None
    order: str

    def close(self) -> None:
        """Free the engine, the judges and the files."""
        self.collector.pool.close()
        self.synced.close()
        if self.keeper is not None:
            self.keeper.close()


def assemble(data: AssembledSettings, sync: Callable[[], None]) -> RolloutParts:
    """Tokenise the task's problems and put together what draws responses to them. Nothing is started.

    Args:
        data: whose settings are taken; it has its trainer.
        sync: gives the engine the policy of now.

    Raises:
        DataError: there is no prompt, or one that is too long.
    """
    source, tokenizer = data.source, data.source.tokenizer
    limits = (checks.prompt_limit(data, source.max_positions()), data.overlong_prompts)
    prompts = PromptSource(data.task.train(), tokenizer, data.seed, *limits)
    problems = data.task.held_out()
    apart = PromptSource(problems, tokenizer, data.seed, *limits) if problems else None
    exact = exact_seeds(data, data.trainer.strategy.root_device)
    sampling = replace(data.sampling, stop_token_ids=source.stop_token_ids(), exact_seeds=exact)
    synced = SyncedEngine(data.engine, source)
    some = prompts.in_order()[:PROMPTS]
    synced.canary = canary = Canary(some, sampling, data.canary_tolerance, int(tokenizer.pad_token_id))
    drawn_by = (source, synced, data.verifier, data.advantage, sampling, data.group_size, data.seed, data.phase)
    collector = Collector(*drawn_by, data.shaping, data.grading, data.trainer.num_devices)
    cut = StepCut(data.prompts_per_epoch, data.prompts_per_step, *data.ranks)
    return RolloutParts(
        [] if apart is None else apart.in_order(),
        max(prompts.longest, 0 if apart is None else apart.longest),
        sampling,
        synced,
        canary,
        collector,
        Pipeline(collector, synced, prompts, cut, data.max_lag, data.steps_per_epoch, sync),
        None if data.output_dir is None else Keeper(data.output_dir, data.seed, *data.ranks),
        prompts.order,
    )


def exact_seeds(data: AssembledSettings, device: torch.device) -> bool:
    """Whether each response has a seed of its own."""
    if data.exact_seeds != "auto":
        return bool(data.exact_seeds)
    if device.type != "cpu" and is_first_rank():
        log.info("rollout.exact_seeds=auto is off on this device: vLLM samples faster, and runs of one seed differ")
    return device.type == "cpu"
