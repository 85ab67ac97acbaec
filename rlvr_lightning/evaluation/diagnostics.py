"""What every run logs of its tokens: per part entropy, ratio, clip fraction and KL; the entropy flow by quadrant, how
probable they were, what regularizers mark, engine mismatch, loss terms.

Nothing here waits for the device before the epoch ends, but for the size of a step's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MaxMetric

from rlvr_lightning.evaluation.metrics import (
    ProbabilityHistogram,
    QuadrantTable,
    RatioQuantiles,
    TokenCounts,
    TokenMeans,
)
from rlvr_lightning.methods.constraints.kl import kl_estimate, ratio
from rlvr_lightning.methods.constraints.opefo import entropy_change
from rlvr_lightning.objective.forces import Force
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import StepPlan, TokenStats

# Ratios of trainer to engine that pass for the same, and percentiles of them that are logged.
NEAR = (0.9, 1.1)
PERCENTS = (1, 50, 99)
# On a regularizer's tokens: of the policy gradient and of the regularizer's own term, over all logits and at the sampled one.
FORCES = ("surrogate", "term", "surrogate_sampled", "term_sampled")


class Diagnostics(torch.nn.Module):
    """Token-weighted means, and counts, over an epoch and all ranks.

    Args:
        objective: names the parts, the regularizers and what they mark, the weightings.
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
        names += [f"policy/weighting/{name}" for name in objective.weightings]
        names += [f"policy/force/{name}/{of}" for name in self.regularizers for of in FORCES]
        names += [f"rollout/mismatch_{kind}{of}" for kind in ("k3", "outside") for of in ("", *self._of_parts)]
        names += [f"rollout/logprob_gap{of}" for of in self._of_parts]
        self.means = TokenMeans(names)
        self.quadrants, self.histogram = QuadrantTable(), ProbabilityHistogram()
        self.counts = TokenCounts(len(self.marks))
        # A check for nan would wait for the device.
        self.gap = MaxMetric(nan_strategy="disable")
        self.mismatch = RatioQuantiles()
        self._terms: dict[str, Tensor | float] = {}
        # Of steps, and so the same on every rank.
        self._steps = self._skipped = self._idle = self._tabled = 0
        self._norms = 0.0

    @torch.no_grad()
    def observe(self, stats: TokenStats, output: LossOutput, plan: StepPlan, *, tables: bool = True) -> None:
        """Add a micro-batch; to quadrants and histogram only where `tables` says so, for every rank and the whole step."""
        mask = stats.loss_mask
        self._observe_means(stats, output, plan)
        if tables:
            self._tabled += 1
            entropy, change = stats.statistics["entropy"], entropy_change(stats)
            self.quadrants.update(stats.advantages, stats.logprobs, entropy, change, mask)
            self.histogram.update(stats.logprobs, mask)
        if self.marks:
            sets = [plan.choices[name] == number for name, number, _ in self.marks]
            self.counts.update(torch.stack(sets) & mask)
        self._observe_mismatch(stats, plan)
        for name, value in output.terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value.double()

    def _observe_mismatch(self, stats: TokenStats, plan: StepPlan) -> None:
        """How far the policy the update starts from is from the one the engine drew with."""
        if stats.rollout_logprobs is None:
            return
        mask = stats.loss_mask
        log_ratio = torch.where(mask, stats.old_logprobs - stats.rollout_logprobs, 0.0)
        self.gap.update(log_ratio.abs().max())
        self.mismatch.update(log_ratio, mask)
        values = {
            "logprob_gap": log_ratio.abs(),
            "mismatch_k3": kl_estimate(stats.rollout_logprobs, stats.old_logprobs, "k3"),
            "mismatch_outside": (log_ratio.exp() < NEAR[0]) | (log_ratio.exp() > NEAR[1]),
        }
        for name, value in values.items():
            self.means.add(f"rollout/{name}", value.double(), mask)
            for part in self.parts:
                self.means.add(f"rollout/{name}/{part}", value.double(), plan.masks[part])

    @property
    def _of_parts(self) -> list[str]:
        return [f"/{part}" for part in self.parts]

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
        for name, factor in output.factors.items():
            add(f"policy/weighting/{name}", factor, mask)

    @torch.no_grad()
    def observe_forces(self, found: Mapping[str, Force]) -> None:
        """Add what pulls at a micro-batch's chosen tokens: the size of a gradient, and its part at the sampled token."""
        for name, force in found.items():
            sizes = (force.surrogate[:, 0], force.term[:, 0], force.surrogate[:, 1].abs(), force.term[:, 1].abs())
            for of, size in zip(FORCES, sizes, strict=True):
                self.means.add(f"policy/force/{name}/{of}", size, torch.ones_like(size, dtype=torch.bool))

    def observe_step(self, grad_norm: Tensor, *, teaches: bool = True) -> None:
        """Add an optimizer step; one that does not teach has no token to learn from on any rank."""
        self._steps += 1
        norm = float(grad_norm)
        if not teaches:
            self._idle += 1
        elif math.isfinite(norm):
            self._norms += norm
        else:
            self._skipped += 1

    def drain(self) -> dict[str, float]:
        """The epoch's means and counts; then start anew. Every rank must call it."""
        logged = self.means.drain()
        for name in self.regularizers:
            for of in ("", "_sampled"):
                whole = logged.get(f"policy/force/{name}/surrogate{of}")
                if whole:
                    logged[f"policy/force{of}/{name}"] = logged[f"policy/force/{name}/term{of}"] / whole
        if "policy/entropy" in logged:  # some rank saw a token
            logged |= self._tables()
        if "rollout/logprob_gap" in logged:
            logged["rollout/logprob_gap_max"] = float(self.gap.compute())
            ratios = zip(PERCENTS, self.mismatch.quantiles([percent / 100 for percent in PERCENTS]), strict=True)
            logged |= {f"rollout/mismatch_ratio_p{percent:02}": ratio for percent, ratio in ratios}
        taken = self._steps - self._skipped - self._idle
        if taken:
            logged["policy/grad_norm"] = self._norms / taken
        logged |= {"policy/skipped_steps": float(self._skipped), "policy/idle_steps": float(self._idle)}
        steps = max(self._steps, 1)
        # Each rank holds its share of a sum over the step's tokens; sorted, as the ranks must go in one order.
        logged |= {
            f"policy/loss/{name}": float(Step().sum(torch.as_tensor(value, dtype=torch.float64))) / steps
            for name, value in sorted(self._terms.items())
        }
        for metric in (self.quadrants, self.histogram, self.counts, self.gap, self.mismatch):
            metric.reset()
        self._terms, self._steps, self._skipped, self._idle, self._norms = {}, 0, 0, 0, 0.0
        self._tabled = 0
        return logged

    def sums(self) -> dict[str, list[float]]:
        """What this rank has added up of an epoch under way, as plain numbers that come back as they were."""
        held = {f"means/{name}": values for name, values in self.means.sums().items()}
        for name, state in self._tables_held():
            held[name] = state.flatten().tolist()
        gap = float(self.gap.max_value)
        held["gap"] = [gap] if gap > -math.inf else []
        held |= {f"terms/{name}": [float(value)] for name, value in self._terms.items()}
        return {**held, "steps": [self._steps, self._skipped, self._idle, self._norms], "tabled": [self._tabled]}

    def resume(self, ranks: Sequence[Mapping[str, list[float]]], rank: int, world_size: int) -> None:
        """Go on adding to what the ranks of a checkpoint had; any number of ranks may.

        Args:
            ranks: `sums` of each rank then.
            rank: this one, now.
            world_size: ranks now. As many as then go on with their own; else the first takes all.
        """
        if not ranks:
            return
        self._steps, self._skipped, self._idle = (int(count) for count in ranks[0]["steps"][:3])
        self._norms = ranks[0]["steps"][3]
        # A run that was begun before they were counted has tables of every step.
        self._tabled = int(ranks[0].get("tabled", ranks[0]["steps"])[0])
        mine = [ranks[rank]] if len(ranks) == world_size else ranks if rank == 0 else []
        for held in mine:
            self.means.resume({key[6:]: values for key, values in held.items() if key.startswith("means/")})
            for name, state in self._tables_held():
                state += torch.tensor(held[name], dtype=state.dtype, device=state.device).view_as(state)
            for gap in held["gap"]:
                self.gap.update(gap)
            for name in (key[6:] for key in held if key.startswith("terms/")):
                self._terms[name] = self._terms.get(name, 0.0) + held[f"terms/{name}"][0]

    def _tables_held(self) -> list[tuple[str, Tensor]]:
        quadrants, counts = self.quadrants, {"histogram": self.histogram.counts, "counts": self.counts.counts}
        return [
            ("members", quadrants.members),
            ("flows", quadrants.flows),
            ("tokens", quadrants.tokens),
            ("mismatch", self.mismatch.counts),
            *counts.items(),
        ]

    def _tables(self) -> dict[str, float]:
        named: dict[str, float] = {}
        shares, flows = self.quadrants.compute().tolist() if self._tabled else ([math.nan], [])
        # Of steps without a token that carries weight there is no table; sums over the ranks, so that all of them agree.
        if not math.isnan(shares[0]):
            named["policy/entropy_flow"] = sum(flows)
            for quadrant, share, flow in zip(self.quadrants.quadrants, shares, flows, strict=True):
                named |= {f"policy/quadrant_share/{quadrant}": share, f"policy/quadrant_flow/{quadrant}": flow}
            bins = zip(self.histogram.bins, self.histogram.compute().tolist(), strict=True)
            named |= {f"policy/prob_hist/{lower}": share for lower, share in bins}
        if self.marks:
            counts = zip(self.marks, self.counts.compute().tolist(), strict=True)
            named |= {f"policy/{name}/{mark}": float(count) for (name, _, mark), count in counts}
        return named
