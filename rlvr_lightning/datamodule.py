"""RolloutDataModule: every epoch, fresh responses from the current policy, ready for the objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from torch.utils.data import DataLoader

from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import AdvantageEstimator, RewardShaping, RolloutEngine, Task, TrainedModule, Verifier
from rlvr_lightning.rollout import checks
from rlvr_lightning.rollout.assembly import ExactSeeds, RolloutParts, assemble
from rlvr_lightning.rollout.balance import balanced
from rlvr_lightning.rollout.buffers import load_buffer, save_buffer
from rlvr_lightning.rollout.canary import Tolerance
from rlvr_lightning.rollout.collector import Collected
from rlvr_lightning.rollout.isolation import Packing, settled_packing
from rlvr_lightning.rollout.micro_batches import Budget, Layout
from rlvr_lightning.rollout.pipeline import phases_left
from rlvr_lightning.rollout.timeline import Timeline, timed
from rlvr_lightning.types import Prompt, Rollout, Row, SamplingSpec, StepBatch
from rlvr_lightning.verifiers.grading import Grading


class RolloutDataModule(L.LightningDataModule):
    """Samples responses from the policy and serves them as optimizer steps.

    The trainer must run with `reload_dataloaders_every_n_epochs=1` and `use_distributed_sampler=False`.

    Args:
        source: model folder, for the tokenizer and the engine.
        task: where problems come from.
        verifier: says whether a response is right.
        advantage: rewards of a group to advantages.
        engine: draws responses.
        group_size: responses a prompt.
        prompts_per_epoch: prompts of a rollout phase, over all ranks.
        prompts_per_step: prompts of an optimizer step, over all ranks; None for all of the phase (on-policy).
        passes: times the phase's rollouts are gone through.
        temperature: divides the logits, in sampling; the module must score with the same.
        top_p: must be 1: a truncated distribution is not the one that is scored.
        max_new_tokens: of a response.
        max_prompt_tokens: longer prompts are skipped or refused.
        overlong_prompts: `skip` or `error`.
        drop_equal_groups: groups of equal rewards carry no weight (Archer, DAPO).
        generation_batches: with `drop_equal_groups`, at most this many batches of `prompts_per_epoch` prompts are drawn
            until as many groups of unequal rewards are together; 1 leaves their places empty.
        packing: several responses share a row instead of being padded; changes speed and memory, not the result.
            `auto` packs where the model's attention keeps them apart without a mask.
        truncated: `mask`: responses cut at `max_new_tokens` carry no weight, but count in their groups' statistics.
        budget: what is in memory at a time when responses are scored and learned from.
        eval_samples: k, responses to each held-out problem.
        seed: of prompt order and sampling.
        output_dir: rollouts are written to `rollouts/` and `held_out/` in it; None keeps them in memory alone.
        shaping: of the rewards, before the advantage; none by default.
        grading: what becomes of verdicts.
        max_lag: phases that may be drawn ahead, while earlier ones are learned from; 0 is strictly on-policy. More needs
            an engine in processes of its own.
        exact_seeds: each response has a seed of its own; `auto`: on the CPU, as it takes vLLM off its fast path on a GPU.
        canary_tolerance: after each sync, mean difference of engine's and trainer's log-probabilities at most [nats].

    Raises:
        ConfigError: a setting is out of range or contradicts another.
    """

    def __init__(
        self,
        source: ModelSource,
        task: Task,
        verifier: Verifier,
        advantage: AdvantageEstimator,
        engine: RolloutEngine,
        group_size: int = 8,
        prompts_per_epoch: int = 32,
        prompts_per_step: int | None = None,
        passes: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 48,
        max_prompt_tokens: int = 512,
        overlong_prompts: Literal["skip", "error"] = "skip",
        drop_equal_groups: bool = False,
        generation_batches: int = 1,
        packing: Packing = "auto",
        truncated: Literal["keep", "mask"] = "keep",
        budget: Budget | None = None,
        eval_samples: int = 8,
        seed: int = 0,
        output_dir: Path | None = None,
        shaping: RewardShaping | None = None,
        grading: Grading | None = None,
        max_lag: int = 0,
        exact_seeds: ExactSeeds = "auto",
        canary_tolerance: Tolerance = "auto",
    ) -> None:
        super().__init__()
        self.source, self.task, self.verifier, self.engine = source, task, verifier, engine
        self.advantage = advantage
        self.group_size, self.prompts_per_epoch, self.passes = group_size, prompts_per_epoch, passes
        self.prompts_per_step = prompts_per_epoch if prompts_per_step is None else prompts_per_step
        self.max_prompt_tokens, self.overlong_prompts = max_prompt_tokens, overlong_prompts
        self.drop_equal_groups, self.generation_batches = drop_equal_groups, generation_batches
        self.eval_samples, self.shaping, self.packing, self.truncated = eval_samples, shaping, packing, truncated
        self.seed, self.output_dir, self.top_p, self.budget = seed, output_dir, top_p, budget or Budget()
        self.grading, self.max_lag = grading or Grading(), max_lag
        self.exact_seeds, self.canary_tolerance = exact_seeds, canary_tolerance
        self.sampling = SamplingSpec(temperature, max_new_tokens, ())
        checks.check_settings(self, advantage)
        self.phase_listeners: list[Callable[[str], None]] = []
        self.report: dict[str, float] = {}
        self.last_rollouts: list[Rollout] = []
        self._steps: list[list[Row]] = []
        self._parts: RolloutParts | None = None
        self._timeline = Timeline()
        self._packed = False

    def phase(self, name: str) -> None:
        """Tell the listeners what is going on: syncing, sampling, waiting, verifying, scoring or updating."""
        self._timeline.enter(name)
        for listener in self.phase_listeners:
            listener(name)

    @property
    def temperature(self) -> float:
        """The sampling temperature."""
        return self.sampling.temperature

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a rollout phase."""
        return self.prompts_per_epoch // self.prompts_per_step * self.passes

    @property
    def steps(self) -> list[list[Row]]:
        """This rank's rows of each optimizer step of the epoch under way, scored; one pass over them."""
        return self._steps

    @property
    def rlvr_module(self) -> TrainedModule:
        """The module being trained."""
        assert self.trainer is not None
        return cast(TrainedModule, self.trainer.lightning_module)

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def setup(self, stage: str) -> None:
        """Tokenise the task's problems. A second call does nothing.

        Raises:
            ConfigError: trainer, module and data module do not agree, or the ranks cannot share a step evenly.
        """
        checks.check_fit(self)
        assert self.trainer is not None
        # Ranks compose their configuration a moment apart: the folder's time stamp is the first one's.
        self.output_dir = self.trainer.strategy.broadcast(self.output_dir)
        if self._parts is None:
            self._parts = assemble(self, self.sync_engine)
            self.sampling = self._parts.sampling

    def reserve(self, length: int) -> None:
        """Make room for prompts and responses of other problems than the task's, before the engine starts [tokens]."""
        self._there.synced.reserve(length)

    def sync_engine(self) -> None:
        """Give the engine the current policy's weights, if it has others. Every rank must call it."""
        assert self.trainer is not None
        self._there.synced.reserve(self._there.longest + self.sampling.max_new_tokens)
        fresh = self._there.synced.sync(self.rlvr_module, self.trainer.strategy.root_device, self.phase)
        if fresh and self._there.keeper is not None and self.trainer.state.fn == "fit":
            self._there.keeper.keep_canary(self.rlvr_module.policy_version, self._there.canary.drawn)

    def choose_layout(self) -> None:
        """Ask the model whether responses can be packed. Every rank must call it."""
        self._packed = settled_packing(self.packing, self.rlvr_module, self.source)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """The epoch's optimizer steps. Draws new responses unless the buffer is this policy version's."""
        assert self.trainer is not None
        version, epochs = self.rlvr_module.policy_version, self.trainer.max_epochs
        if epochs is not None and 0 <= epochs * self.steps_per_epoch <= version:
            # Lightning asks also when nothing is left to learn, and takes no step: nothing is drawn for it.
            return DataLoader(cast(Any, [None] * self.steps_per_epoch), batch_size=None)
        epoch_under_way = 0 <= self._drawn_at < version < self._drawn_at + self.steps_per_epoch
        if epoch_under_way and not self._steps:
            self._steps, self.report = load_buffer(self._buffers, self._drawn_at, *self.ranks)
            checks.check_scored(chain.from_iterable(self._steps), self.rlvr_module.objective)
        elif self._drawn_at != version or not self._steps:
            self._collect(version)
        self.phase("updating")
        # Lightning goes on counting at the step a resumed epoch stopped at, but reads the loader from its beginning.
        layout, done = self._layout, version - self._drawn_at
        steps = [layout.laid_out(layout.cut(rows)) for rows in self._steps] * self.passes
        return DataLoader(cast(Any, steps[done:] + steps[:done]), batch_size=None)

    def _collect(self, version: int) -> None:
        assert self.trainer is not None
        drawn = self._there.pipeline.collect(
            version,
            phases_left(self.trainer.max_epochs, version // self.steps_per_epoch),
            self.generation_batches,
            drop_equal_groups=self.drop_equal_groups,
            mask_truncated=self.truncated == "mask",
        )
        self._there.synced.rest()
        self.phase("scoring")
        known = checks.needs_no_old_pass(self, self.rlvr_module.objective, ahead=drawn.ahead)
        score = partial(self.rlvr_module.score, on_policy=known)
        device = self.trainer.strategy.root_device
        self._steps = [self._layout.scored(balanced(rows, *self.ranks, device), score) for rows in drawn.steps]
        self._keep(drawn)

    @property
    def _drawn_at(self) -> int:
        """Version of the policy that the phase under way was begun with."""
        return -1 if self._parts is None else self._parts.pipeline.version

    @property
    def _there(self) -> RolloutParts:
        assert self._parts is not None, "set the data module up first"
        return self._parts

    @property
    def _layout(self) -> Layout:
        return Layout(self.budget, int(self.source.tokenizer.pad_token_id), self._packed)

    def _keep(self, drawn: Collected) -> None:
        assert self.trainer is not None
        self.report = {**drawn.report.metrics(self.trainer.strategy.root_device), **self._there.synced.metrics()}
        self.last_rollouts = [rollout for group in drawn.rollouts for rollout in group]
        if self._there.keeper is None:
            return
        self._there.keeper.keep_phase(self._drawn_at, drawn)
        if self.steps_per_epoch > 1:
            save_buffer(self._buffers, self._drawn_at, self._steps, self.report, *self.ranks)

    @property
    def _buffers(self) -> Path:
        return (self.output_dir or Path()) / "buffers"

    def timeline(self) -> dict[str, float]:
        """Where the time since the last call went: see `timed`."""
        return timed(self._timeline, self.report, self.passes)

    def val_dataloader(self) -> DataLoader[list[Prompt]]:
        """This rank's share of the held-out prompts, as one batch."""
        (rank, world), prompts = self.ranks, self._there.held_out
        return DataLoader(cast(Any, [prompts[rank::world]] if prompts else []), batch_size=None)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Tensors move; prompts are no tensors."""
        return batch.map(lambda tensor: tensor.to(device)) if isinstance(batch, StepBatch) else batch

    @property
    def evaluates(self) -> bool:
        """Whether held-out responses would say something of the policy: a replay's may be another one's."""
        return self._there.synced.on_policy

    def evaluate(self, prompts: list[Prompt]) -> list[Rollout]:
        """Graded responses to held-out prompts, `eval_samples` each, with seeds of their own. Every rank must call it."""
        assert self.trainer is not None
        drawn, keeper = self._there.collector.held_out(prompts, self.eval_samples), self._there.keeper
        self._there.synced.rest()
        self._timeline.enter("other")
        if keeper is not None and self.trainer.state.fn == "fit":
            keeper.keep_held_out(self.rlvr_module.policy_version, drawn)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands in the prompt order, and whose rollouts are being learned from."""
        if self._there.keeper is not None:
            self._there.keeper.flush()
        where = {**self._there.pipeline.state(), "policy_version": self.rlvr_module.policy_version}
        return {**where, "order": self._there.order, "settings": checks.phase_settings(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: under settings that would make it another run.
        """
        checks.check_resumed(self, state_dict, self._there.order)
        self._there.pipeline.load(state_dict)

    def teardown(self, stage: str) -> None:
        """Free engine and verifier at the end of a run."""
        if stage != "validate" and self._parts is not None:
            self._parts.close()
