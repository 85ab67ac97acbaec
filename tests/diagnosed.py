"""A step of ragged off-policy responses, and what the diagnostics see of it in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlvr_lightning.evaluation.diagnostics import Diagnostics
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.joining import cut, join
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.statistics import EntropyFlow
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.types import TokenStats

ROWS, LENGTH, VOCABULARY = 8, 7, 12
QUADRANTS = ("positive_likely", "positive_rare", "negative_likely", "negative_rare")
RHO, KAPPA = 0.6, 0.1
CUTS = ([ROWS], [1, ROWS], [3, 4, 7, ROWS])


def objective(variant: Any = "paper") -> Objective:
    constraint = ClipKL(0.1, 0.2, kl_coef=0.05)
    regularizers = {"shield": LpReg(RHO, KAPPA, variant=variant), "cov": KLCov(0.2)}
    return Objective(EntropyQuantile(0.7, "batch"), constraint, regularizers, TokenMean())


def logits_and_ids(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Current and old logits, sampled tokens: some of them improbable ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
    old = logits + 0.4 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    # Half of them drawn, half of them anything.
    drawn = torch.multinomial(old.softmax(-1).flatten(0, 1), 1, generator=generator).view(ROWS, LENGTH)
    anything = torch.randint(VOCABULARY, drawn.shape, generator=generator)
    return logits, old, torch.where(torch.rand(drawn.shape, generator=generator) < 0.5, drawn, anything)


def make_stats(built: Objective, seed: int = 0) -> TokenStats:
    """Off-policy statistics of ragged responses; one has no advantage and one no weight."""
    logits, old, ids = logits_and_ids(seed)
    mask = torch.arange(LENGTH) < torch.tensor([7, 3, 5, 1, 6, 7, 2, 4]).unsqueeze(-1)
    mask[6] = False
    advantages = torch.tensor([1.3, -0.7, 0.0, 0.4, -1.1, -0.2, 2.0, 0.9], dtype=torch.float64)

    def of(values: Tensor, when: str, before: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        statistics = [statistic for statistic in (*built.requires, EntropyFlow()) if when in statistic.passes]
        return token_stats(values, ids, mask, lambda x: x, 1.0, statistics, before)

    old_logprobs, old_statistics = of(old, "rollout")
    logprobs, statistics = of(logits, "update", old_statistics)
    return TokenStats(
        logprobs,
        old_logprobs,
        advantages.unsqueeze(-1).expand(mask.shape),
        mask,
        rollout_logprobs=old_logprobs + 0.01,
        ref_logprobs=old_logprobs - 0.3,
        statistics=statistics,
        old_statistics=old_statistics,
    )


def rows_of(stats: TokenStats, rows: slice) -> TokenStats:
    changes: dict[str, Any] = {}
    for item in fields(stats):
        value = getattr(stats, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = value[rows]
        elif isinstance(value, dict):
            changes[item.name] = {key: tensor[rows] for key, tensor in value.items()}
    return replace(stats, **changes)


def observed(built: Objective, stats: TokenStats, cuts: Sequence[int]) -> Diagnostics:
    """What was seen of the rows in micro-batches that end at `cuts`."""
    diagnostics = Diagnostics(built)
    micros = [rows_of(stats, slice(*ends)) for ends in pairwise([0, *cuts])]
    for micro, plan in zip(micros, cut(built.plan(join(micros), Step()), micros), strict=True):
        diagnostics.observe(micro, built(micro, plan), plan)
    return diagnostics
