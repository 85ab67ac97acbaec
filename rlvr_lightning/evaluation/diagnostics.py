"""What every run logs of its tokens: per part entropy, ratio, clip fraction and KL; the entropy flow by quadrant, how
probable they were, what regularizers mark, engine mismatch, loss terms.

Nothing here waits for the device before the epoch ends, but for the size of a step's gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import MaxMetric, MeanMetric

from rlvr_lightning.evaluation.metrics import ProbabilityHistogram, QuadrantTable, TokenCounts, TokenMeans
from rlvr_lightning.methods.constraints.kl import kl_estimate, ratio
from rlvr_lightning.methods.constraints.opefo import entropy_change
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import StepPlan, TokenStats


class Diagnostics(torch.nn.Module):
    """Token-weighted means, and counts, over an epoch and all ranks.

    Args:
        objective: names the parts, the regularizers and what they mark.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.parts = objective.partitioner.parts
        self.regularizers = tuple(objective.regularizers)
        self.marks = tuple(
            (name, number, mark)
            for name, regularizer in objective.regularizers.items()
            for number, mark in enumerate(regularizer.marks, 1)
        )
        names = ["policy/entropy", "policy/ratio", "policy/kl_old", "rollout/logprob_gap"]
        for kind in ("share", "entropy", "ratio", "clip_frac", "kl_old", "kl_ref"):
            names += [f"policy/{kind}/{part}" for part in self.parts]
        names += [f"policy/tokens_in/{name}" for name in self.regularizers]
        self.means = TokenMeans(names)
        self.quadrants, self.histogram = QuadrantTable(), ProbabilityHistogram()
        self.counts = TokenCounts(len(self.marks))
        # A check for nan would wait for the device.
        self.gap = MaxMetric(nan_strategy="disable")
        self.grad_norm = MeanMetric()
        self._terms: dict[str, Tensor] = {}
        self._steps = self._skipped = 0

    @torch.no_grad()
    def observe(self, stats: TokenStats, output: LossOutput, plan: StepPlan) -> None:
        """Add a micro-batch."""
        mask, entropy = stats.loss_mask, stats.statistics["entropy"]
        self._observe_means(stats, output, plan)
        self.quadrants.update(stats.advantages, stats.logprobs, entropy, entropy_change(stats), mask)
        self.histogram.update(stats.logprobs, mask)
        if self.marks:
            sets = [plan.choices[name] == number for name, number, _ in self.marks]
            self.counts.update(torch.stack(sets) & mask)
        if stats.rollout_logprobs is not None:
            gap = torch.where(mask, (stats.old_logprobs - stats.rollout_logprobs).abs(), 0.0)
            self.means.add("rollout/logprob_gap", gap, mask)
            self.gap.update(gap.max())
        for name, value in output.terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(value)) + value

    def _observe_means(self, stats: TokenStats, output: LossOutput, plan: StepPlan) -> None:
        add, mask = self.means.add, stats.loss_mask
        values = {
            "entropy": stats.statistics["entropy"],
            "ratio": ratio(stats.logprobs, stats.old_logprobs),
            "kl_old": kl_estimate(stats.logprobs, stats.old_logprobs, "k3"),
        }
        for kind, value in values.items():
            add(f"policy/{kind}", value, mask)
        if output.clipped is not None:
            values["clip_frac"] = output.clipped.double()
        if stats.ref_logprobs is not None:
            values["kl_ref"] = kl_estimate(stats.logprobs, stats.ref_logprobs, "k3")
        for part in self.parts:
            own = plan.masks[part]
            add(f"policy/share/{part}", own.double(), mask)
            for kind, value in values.items():
                add(f"policy/{kind}/{part}", value, own)
        for name in self.regularizers:
            if name in plan.masks:
                add(f"policy/tokens_in/{name}", plan.masks[name].double(), mask)

    def observe_step(self, grad_norm: Tensor) -> None:
        """Add an optimizer step."""
        self._steps += 1
        if math.isfinite(float(grad_norm)):
            self.grad_norm.update(grad_norm.detach().float())
        else:
            self._skipped += 1

    def drain(self) -> dict[str, float]:
        """The epoch's means and counts; then start anew. Every rank must call it."""
        logged = self.means.drain()
        if "policy/entropy" in logged:  # some rank saw a token
            logged |= self._tables()
        if "rollout/logprob_gap" in logged:
            logged["rollout/logprob_gap_max"] = float(self.gap.compute())
        if self._steps > self._skipped:
            logged["policy/grad_norm"] = float(self.grad_norm.compute())
        logged["policy/skipped_steps"] = float(self._skipped)
        steps = max(self._steps, 1)
        # Each rank holds its share of a sum over the step's tokens.
        logged |= {f"policy/loss/{name}": float(Step().sum(value)) / steps for name, value in self._terms.items()}
        for metric in (self.quadrants, self.histogram, self.counts, self.gap, self.grad_norm):
            metric.reset()
        self._terms, self._steps, self._skipped = {}, 0, 0
        return logged

    def _tables(self) -> dict[str, float]:
        shares, flows = self.quadrants.compute().tolist()
        named = {"policy/entropy_flow": sum(flows)}
        for quadrant, share, flow in zip(self.quadrants.quadrants, shares, flows, strict=True):
            named |= {f"policy/quadrant_share/{quadrant}": share, f"policy/quadrant_flow/{quadrant}": flow}
        bins = zip(self.histogram.bins, self.histogram.compute().tolist(), strict=True)
        named |= {f"policy/prob_hist/{lower}": share for lower, share in bins}
        if self.marks:
            counts = zip(self.marks, self.counts.compute().tolist(), strict=True)
            named |= {f"policy/{name}/{mark}": float(count) for (name, _, mark), count in counts}
        return named
