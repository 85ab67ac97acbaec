"""What every run logs of its tokens: entropy, clip fraction and KL per part, ratio, engine mismatch, loss terms."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import MaxMetric, MeanMetric

from rlvr_lightning.constraints.kl import kl_estimate, ratio
from rlvr_lightning.metrics import TokenMeans
from rlvr_lightning.objective import LossOutput, Objective
from rlvr_lightning.step import Step
from rlvr_lightning.types import StepPlan, TokenStats


class Diagnostics(torch.nn.Module):
    """Token-weighted means over an epoch and all ranks.

    Args:
        objective: names the parts and the terms.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.parts = objective.partitioner.parts
        self.marks = tuple(objective.regularizers)
        names = ["policy/ratio", "policy/kl_old", "rollout/logprob_gap"]
        names += [f"policy/{kind}/{part}" for kind in ("entropy", "clip_frac", "kl_ref") for part in self.parts]
        names += [f"policy/share/{part}" for part in self.parts]
        names += [f"policy/tokens_in/{name}" for name in self.marks]
        self.means = TokenMeans(names)
        self.gap = MaxMetric()
        self.grad_norm = MeanMetric()
        self._terms: dict[str, Tensor] = {}
        self._steps = self._skipped = self._tokens = 0

    @torch.no_grad()
    def observe(self, stats: TokenStats, output: LossOutput, plan: StepPlan) -> None:
        """Add a micro-batch."""
        add, mask = self.means.add, stats.loss_mask
        add("policy/ratio", ratio(stats.logprobs, stats.old_logprobs), mask)
        add("policy/kl_old", kl_estimate(stats.logprobs, stats.old_logprobs, "k3"), mask)
        for part in self.parts:
            own = plan.masks[part]
            add(f"policy/entropy/{part}", stats.statistics["entropy"], own)
            add(f"policy/share/{part}", own.double(), mask)
            if output.clipped is not None:
                add(f"policy/clip_frac/{part}", output.clipped.double(), own)
            if stats.ref_logprobs is not None:
                add(f"policy/kl_ref/{part}", kl_estimate(stats.logprobs, stats.ref_logprobs, "k3"), own)
        for name in self.marks:
            if name in plan.masks:
                add(f"policy/tokens_in/{name}", plan.masks[name].double(), mask)
        if stats.rollout_logprobs is not None and mask.any():
            gap = torch.where(mask, (stats.old_logprobs - stats.rollout_logprobs).abs(), 0.0)
            add("rollout/logprob_gap", gap, mask)
            self.gap.update(gap.max())
        for name, value in output.terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(value)) + value
        self._tokens += int(mask.sum())

    def observe_step(self, grad_norm: Tensor) -> None:
        """Add an optimizer step."""
        self._steps += 1
        if math.isfinite(float(grad_norm)):
            self.grad_norm.update(grad_norm.detach().float())
        else:
            self._skipped += 1

    @property
    def tokens(self) -> int:
        """Tokens of this rank learned from since the last drain."""
        return self._tokens

    def drain(self) -> dict[str, float]:
        """The epoch's means; then start anew. Every rank must call it."""
        logged = self.means.drain()
        if "rollout/logprob_gap" in logged:
            logged["rollout/logprob_gap_max"] = float(self.gap.compute())
        if self._steps > self._skipped:
            logged["policy/grad_norm"] = float(self.grad_norm.compute())
        logged["policy/skipped_steps"] = float(self._skipped)
        steps = max(self._steps, 1)
        # Each rank holds its share of a sum over the step's tokens.
        logged |= {f"policy/loss/{name}": float(Step().sum(value)) / steps for name, value in self._terms.items()}
        self.gap.reset()
        self.grad_norm.reset()
        self._terms, self._steps, self._skipped, self._tokens = {}, 0, 0, 0
        return logged
