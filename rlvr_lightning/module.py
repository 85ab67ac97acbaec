"""RLVRModule: Lightning hooks around the objective, and nothing else.

One training batch is one optimizer step of this rank; micro-batches are cut inside, so that what belongs to the whole
step (thresholds, denominators) is found once, before the first of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.evaluation.diagnostics import Diagnostics
from rlvr_lightning.evaluation.held_out import EvaluatedModule
from rlvr_lightning.methods.aggregators import SequenceMeanTokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.controllers.protocol import Controller
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.objective.statistics import EntropyFlow
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import Aggregator, ConstraintPolicy, Correction, Regularizer, TokenPartitioner, Weighting
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.training.driver import Driver
from rlvr_lightning.training.optim import OptimSettings, enforce, gradient_norm, make_optimizer, make_schedule
from rlvr_lightning.training.precision import compute_dtype
from rlvr_lightning.training.reference import Reference
from rlvr_lightning.training.sharding import ShardSettings, make_mesh, meet, shard
from rlvr_lightning.types import StepBatch, TokenBatch

# With four steps a phase, as here by default, it falls on each of them in turn.
DIAGNOSTICS_EVERY = 5


class RLVRModule(EvaluatedModule):
    """A policy trained with a composed objective.

    Args:
        source: the model folder and how to load it.
        partitioner: splits response tokens into parts; `SinglePart` by default.
        constraint: surrogate and KL per part; `ClipKL` by default.
        regularizers: further terms by name.
        aggregator: token terms to one number; mean over responses of token means by default.
        correction: weighs the surrogate for the gap between engine and trainer; none by default.
        optim: of the optimizer.
        sharding: what FSDP2 does, where the strategy has a device mesh.
        temperature: divides the logits; must be the sampling temperature.
        eval_samples: k of avg@k and pass@k: responses to each held-out problem.
        controller: moves one number of one component once an optimizer step; none by default.
        diagnostics_every_n_steps: entropy flow, quadrants and the histogram of probabilities, which cost a little, are of
            every n-th optimizer step.
        weightings: factors of the surrogate by name; none by default.
        forces_every_n_steps: how strongly policy gradient and regularizers pull at the tokens these have chosen is measured every n-th
            optimizer step, in a pass of its own; None for never.
        reference_rate: how far the reference goes towards the policy after each optimizer step; 0 keeps it frozen.

    Raises:
        ConfigError: a setting is out of range or components do not fit together.
    """

    def __init__(
        self,
        source: ModelSource,
        partitioner: TokenPartitioner | None = None,
        constraint: ConstraintPolicy | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        aggregator: Aggregator | None = None,
        correction: Correction | None = None,
        optim: OptimSettings | None = None,
        temperature: float = 1.0,
        eval_samples: int = 8,
        controller: Controller | None = None,
        sharding: ShardSettings | None = None,
        diagnostics_every_n_steps: int = DIAGNOSTICS_EVERY,
        weightings: Mapping[str, Weighting] | None = None,
        forces_every_n_steps: int | None = None,
        reference_rate: float = 0.0,
    ) -> None:
        super().__init__(eval_samples)
        if diagnostics_every_n_steps < 1:
            raise ConfigError(f"trainer.diagnostics_every_n_steps must be at least 1; got {diagnostics_every_n_steps}")
        if forces_every_n_steps is not None and forces_every_n_steps < 1:
            raise ConfigError(f"trainer.forces_every_n_steps must be at least 1; got {forces_every_n_steps}")
        self.diagnostics_every, self.forces_every = diagnostics_every_n_steps, forces_every_n_steps
        self.automatic_optimization = False
        self.source, self.temperature = source, temperature
        self.optim, self.sharding = optim or OptimSettings(), sharding or ShardSettings()
        self.objective = Objective(
            partitioner or SinglePart(),
            constraint or ClipKL(),
            regularizers or {},
            aggregator or SequenceMeanTokenMean(),
            correction,
            weightings,
        )
        self.driver = None if controller is None else Driver(controller, self.objective)
        self.epoch_metrics: dict[str, float] = {}
        self.diagnostics = Diagnostics(self.objective)
        self.policy: Policy
        self.reference = Reference(reference_rate, required=self.objective.requires_ref, adapters=bool(source.lora))
        self.scorer: Scorer
        self._fingerprint = ""

    def configure_model(self) -> None:
        """Load policy and reference, sharded where the strategy has a device mesh. A second call does nothing."""
        if hasattr(self, "policy"):
            return
        device = self.trainer.strategy.root_device
        share: Callable[[Policy], None] | None = None
        mesh = make_mesh(self.device_mesh, self.sharding, self.trainer.num_nodes)
        if mesh is not None:
            share = partial(shard, mesh=mesh, settings=self.sharding)
            device = torch.device("cpu") if self.sharding.cpu_offload else device
        self.policy = policy = Policy(self.source, device=device, share=share)
        self._fingerprint = policy.fingerprint
        if self.objective.requires_ref and not policy.has_adapters:
            self.reference.model = Policy(self.source, trainable=False, device=device, share=share)
        self.scorer = Scorer(policy, self.reference.model, self.objective, self.temperature)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the policy's matrix products."""
        return compute_dtype(self.trainer.precision if self.device_mesh is None else self.sharding.precision)

    @property
    def _total_steps(self) -> int:
        return (self.trainer.max_epochs or 0) * self._data.steps_per_epoch

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trainable and its learning rate, both stepped once an optimizer step."""
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(self.optim, trainable)
        return [optimizer], [make_schedule(self.optim, optimizer, self._total_steps)]

    def on_train_start(self) -> None:
        """A checkpoint brings state, not settings: the numbers in force are this run's."""
        enforce(self.optim, cast(Any, self.optimizers()).optimizer, cast(Any, self.lr_schedulers()))

    def on_fit_start(self) -> None:
        """With the model in its place: can it be given packed responses?"""
        self._data.choose_layout()

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """One optimizer step: plan it, add up its micro-batches' gradients, update."""
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        last = len(batch.micros) - 1
        tables = self.policy_version % self.diagnostics_every == 0
        logged = (EntropyFlow(),) if tables else ()
        planner = self.scorer.planner(batch, Step())
        # Ranks average their gradients; the loss is a sum over ranks.
        scale = float(self.trainer.world_size)
        total = torch.zeros((), device=self.device)
        for index, micro in enumerate(batch.micros):
            with self._gradients_stay_local(index < last):
                stats = self.scorer.stats(micro, logged, partial(planner.guess, index), scale, planner.tokens)
                plan = planner.plan(index, stats)
                output = self.objective(stats, plan)
                self.manual_backward(output.loss * scale)
            self.diagnostics.observe(stats, output, plan, tables=tables)
            if self.forces_every is not None and self.policy_version % self.forces_every == 0:
                self.diagnostics.observe_forces(self.scorer.forces(micro, stats, plan))
            if self.driver is not None:
                self.driver.observe(stats, plan)
            total += output.loss.detach().to(total.dtype)
        taught = torch.stack([micro.loss_mask.sum() for micro in batch.micros]).sum()
        self._update(optimizer, teaches=bool(Step().sum(taught) > 0))
        if self.driver is not None:
            self.driver.advance(self.policy_version, self._total_steps)
        return Step().sum(total)

    def _update(self, optimizer: Any, *, teaches: bool) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = gradient_norm(parameters)
        self.diagnostics.observe_step(norm, teaches=teaches)
        # A step without a finite gradient would destroy the policy, one without a token to learn from would move it by
        # momentum and weight decay alone: both are left out and counted.
        if teaches and torch.isfinite(norm):
            if self.optim.grad_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.grad_clip, norm)
            optimizer.step()
            self.reference.follow(self.policy)
        cast(Any, self.lr_schedulers()).step()
        self.policy_version += 1

    def score(self, micro: TokenBatch, *, on_policy: bool) -> TokenBatch:
        """Add what the policy (unless the update is on-policy) and the reference say of the tokens."""
        with self.trainer.precision_plugin.forward_context():
            scored = self.scorer.score(micro, self.device, on_policy=on_policy)
        for policy in filter(None, (self.policy, self.reference.model)):
            policy.free_gathered()
        return scored

    def _gradients_stay_local(self, more_to_come: bool) -> contextlib.AbstractContextManager[Any]:
        if self.device_mesh is not None:
            meet(self.policy, self.sharding, self.device, last=not more_to_come)
            return contextlib.nullcontext()
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if more_to_come and block is not None else contextlib.nullcontext()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After the epoch's last step gather its means: callbacks read them before `on_train_epoch_end`."""
        if self.trainer.is_last_batch:
            driven = {} if self.driver is None else self.driver.metrics()
            self.epoch_metrics = {**self._data.report, **self.diagnostics.drain(), **driven, **self._data.timeline()}

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means, of tokens and of rollouts."""
        self.enter({"epoch": self.current_epoch, **self.epoch_metrics})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes results and is no tensor."""
        checkpoint["rlvr"] = {
            "policy_version": self.policy_version,
            "fingerprint": self._fingerprint,
            "baseline": self.baseline,
            "evaluation": self.evaluation,
            "evaluated_version": self.evaluated_version,
            "epoch_metrics": self.epoch_metrics,
            "sums": from_all_ranks([self.diagnostics.sums()]),
            "controller": None if self.driver is None else self.driver.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: it was trained from another model or with another controller.
        """
        state = checkpoint["rlvr"]
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"the checkpoint was trained from another model than model.path={self.source.path}: use the one it "
                "began with"
            )
        self.policy_version, self.baseline = state["policy_version"], state["baseline"]
        self.evaluation, self.evaluated_version = state["evaluation"], state["evaluated_version"]
        self.epoch_metrics = state["epoch_metrics"]
        self.diagnostics.resume(state["sums"], self.trainer.global_rank, self.trainer.world_size)
        if self.driver is not None and state.get("controller") is not None:
            self.driver.load_state_dict(state["controller"])
