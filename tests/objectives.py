"""Objectives that cover every component, and cases they are evaluated on: from logits, in any arrangement of the tokens.

An arrangement says where each token of a case lies: rows may be cut, permuted, padded or packed. Gradients always come
back in the case's own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlvr_lightning.methods.aggregators import SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from rlvr_lightning.methods.constraints.aspo import ASPO
from rlvr_lightning.methods.constraints.bapo import BAPO
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.ce_gppo import CEGPPO
from rlvr_lightning.methods.constraints.cispo import CISPO
from rlvr_lightning.methods.constraints.clip_cov import ClipCov
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.dppo import DPPO
from rlvr_lightning.methods.constraints.flexible_clip import FlexibleClip
from rlvr_lightning.methods.constraints.gmpo import GMPO
from rlvr_lightning.methods.constraints.gspo import GSPO
from rlvr_lightning.methods.constraints.only_part import OnlyPart
from rlvr_lightning.methods.constraints.opefo import OPEFO
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.corrections.mis import MIS
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.random_share import RandomShare
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.partitioners.top_entropy import TopEntropy
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.methods.regularizers.only_places import OnlyPlaces
from rlvr_lightning.methods.regularizers.spark_shield import SparkShield
from rlvr_lightning.methods.weightings.entropy_clip import ClipB, ClipV
from rlvr_lightning.methods.weightings.erc import ERC
from rlvr_lightning.methods.weightings.repo_r import RepoR
from rlvr_lightning.methods.weightings.stare import STARE
from rlvr_lightning.methods.weightings.steer import STEER
from rlvr_lightning.objective.joining import cut, join
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.planning import Alone
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.protocols import Aggregator, ConstraintPolicy, StepContext
from rlvr_lightning.types import Pass, TokenStats

PARTS = ("knowledge", "reasoning")
LOW, HIGH = {"knowledge": 0.1, "reasoning": 0.4}, {"knowledge": 0.15, "reasoning": 0.5}
COEF = {"knowledge": 0.3, "reasoning": 0.02}
AGGREGATORS: dict[str, Aggregator] = {
    "token_mean": TokenMean(),
    "sequence_mean_token_mean": SequenceMeanTokenMean(),
    "sequence_mean_token_sum": SequenceMeanTokenSum(7.0),
}
MEAN = SequenceMeanTokenMean()
Build = Callable[[Aggregator], Objective]


def single(constraint: ConstraintPolicy, correction: Any = None, **regularizers: Any) -> Build:
    return lambda aggregator: Objective(SinglePart(), constraint, regularizers, aggregator, correction)


def weighed(constraint: ConstraintPolicy, correction: Any = None, **weightings: Any) -> Build:
    return lambda aggregator: Objective(SinglePart(), constraint, {}, aggregator, correction, weightings)


def archer(variant: Any = "paper", scope: Any = "response", **regularizers: Any) -> Build:
    constraint, partitioner = ClipKL(LOW, HIGH, 3.0, COEF, variant=variant), EntropyQuantile(0.7, scope, variant)
    return lambda aggregator: Objective(partitioner, constraint, regularizers, aggregator)


def two_parts(partitioner: Any, constraint: ConstraintPolicy, **regularizers: Any) -> Build:
    return lambda aggregator: Objective(partitioner, constraint, regularizers, aggregator)


Head = Callable[[Tensor], Tensor]
OBJECTIVES: dict[str, Build] = {
    "archer": archer(),
    "archer, reference": archer("reference"),
    "archer, batch": archer(scope="batch"),
    "archer + lp_reg": archer(lp_reg=LpReg(0.6, 0.02)),
    "archer + lp_reg, reference": archer("reference", lp_reg=LpReg(0.6, 0.1, variant="reference")),
    "lp_reg": single(CappedRatio(1.2), lp_reg=LpReg(0.6, 0.02)),
    "lp_reg, absolute": single(CappedRatio(1.2), lp_reg=LpReg(0.6, 0.02, "absolute")),
    "lp_reg, reference": single(CappedRatio(1.2, "reference"), lp_reg=LpReg(0.6, 0.1, variant="reference")),
    "shield": single(CappedRatio(1.2), shield=SparkShield(0.6, 0.1)),
    "shield, full": single(CappedRatio(1.2), shield=SparkShield(0.6, 0.1, "reference", "full", 0.3, support=4)),
    "shield, current": single(CappedRatio(1.2), shield=SparkShield(0.8, 0.4, "current", "k3", 0.5)),
    "shields and lp_reg": single(
        CappedRatio(1.2),
        lp_reg=LpReg(0.6, 0.1),
        current=SparkShield(0.8, 0.4, "current", "full"),
        old=SparkShield(0.9, 0.3, "old", "k3"),
        reference=SparkShield(0.6, 0.1, "reference", "full"),
    ),
    "places": single(
        CappedRatio(1.2), first=OnlyPlaces(LpReg(0.6, 0.02), "first", 2), rest=OnlyPlaces(KLCov(0.4), "rest", 2)
    ),
    "grpo": single(ClipKL(kl_coef=0.1)),
    "dapo": single(ClipKL(0.2, 0.28)),
    "gspo": single(GSPO(0.03, 0.04)),
    "gmpo": single(GMPO(0.2, 0.3)),
    "cispo": single(CISPO(0.5, 0.5)),
    "sapo": single(SAPO()),
    "clip_cov": single(ClipCov(0.2, 0.05, 2.0)),
    "kl_cov": single(ClipKL(1.0, float("inf")), kl_cov=KLCov(0.2)),
    "eighty_twenty": two_parts(TopEntropy(0.3), OnlyPart("reasoning", ClipKL(0.2, 0.28, kl_coef=0.1))),
    "random control": two_parts(RandomShare(0.4), OnlyPart("reasoning", ClipKL(0.2, 0.28))),
    "entropy_bonus": single(ClipKL(), entropy_bonus=EntropyBonus(0.3)),
    "aspo": two_parts(EntropyQuantile(0.7), ASPO(LOW, HIGH, 1.3)),
    "ce_gppo": two_parts(RandomShare(0.4), CEGPPO(LOW, HIGH, 0.6, COEF)),
    "flexible_clip": single(FlexibleClip()),
    "opefo": single(OPEFO(0.7)),
    "tis": single(ClipKL(), TIS(1.2)),
    "mis + lp_reg, reference": single(ClipKL(), MIS(0.7, 1.4), lp_reg=LpReg(0.6, 0.1, variant="reference")),
    "everything at once": two_parts(
        TopEntropy(0.3, "rollout"),
        OnlyPart("reasoning", CISPO(LOW, HIGH)),
        lp_reg=LpReg(0.6, 0.02),
        kl_cov=KLCov(0.2),
        entropy_bonus=EntropyBonus(0.1),
    ),
    "dppo": two_parts(RandomShare(0.4), DPPO("tv", LOW, HIGH, 1.3)),
    "dppo, kl": single(DPPO("kl", 0.02, 0.03, 1.3)),
    "bapo": single(BAPO(0.42, 0.7, 0.9, 1.05, 1.4, 0.05, 1.3)),
    "bapo, reference": single(BAPO(0.35, 0.7, 0.9, 1.05, 1.4, 0.05, 1.3, "reference")),
    "stare": weighed(ClipKL(0.2, 0.28), stare=STARE(0.3, 1.5, 0.6, 9.0)),
    "steer": weighed(ClipKL(0.2, 0.28), steer=STEER(0.4)),
    "clip_b": weighed(ClipKL(), clip_b=ClipB(0.5)),
    "clip_v": weighed(ClipKL(), clip_v=ClipV(0.4, 0.1)),
    "repo_r": weighed(ClipKL(kl_coef=0.1), repo_r=RepoR(0.3)),
    "erc": weighed(SAPO(), TIS(1.2), erc=ERC(0.2, 0.2)),
    "weightings at once": lambda aggregator: Objective(
        TopEntropy(0.5),
        OnlyPart("reasoning", CISPO(LOW, HIGH)),
        {"lp_reg": LpReg(0.6, 0.1, variant="reference"), "erc": EntropyBonus(0.1)},
        aggregator,
        MIS(0.7, 1.4),
        {"one": STARE(0.3, 1.5, 0.6, 9.0), "two": STARE(0.1, 2.0, 0.9, 9.0), "steer": STEER(0.4), "erc": ERC(0.5, 0.5)},
    ),
}


@dataclass(frozen=True)
class Case:
    """A step's tokens before any arrangement: rows are responses, padded on the right."""

    logits: Tensor
    old_logits: Tensor
    ref_logits: Tensor
    ids: Tensor
    mask: Tensor
    advantages: Tensor
    rollout_logprobs: Tensor
    noise: Tensor
    segments: Tensor | None = None


def random_case(seed: int, rows: int = 16, length: int = 6, vocabulary: int = 9, *, on_policy: bool = False) -> Case:
    """Ragged responses with both signs of advantage; the first two rows are equal, so that ties occur."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = 2 * normal(rows, length, vocabulary)
    old = logits if on_policy else logits + 0.3 * normal(rows, length, vocabulary)
    ids = torch.randint(vocabulary, (rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    advantages = normal(rows, 1).expand(rows, length).clone()
    old_logprobs = old.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    rollout = old_logprobs + 0.4 * normal(rows, length)
    noise = torch.rand(rows, length, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < lengths
    case = Case(
        logits.requires_grad_(), old, old + normal(rows, length, vocabulary), ids, mask, advantages, rollout, noise
    )
    with torch.no_grad():
        for tensor in (case.logits, case.old_logits, case.ids, case.advantages):
            tensor[1] = tensor[0]
    return replace(case, old_logits=case.logits.detach().clone()) if on_policy else case


def arrange(case: Case, positions: Tensor, segments: Tensor | None = None) -> Case:
    """The same tokens elsewhere.

    Args:
        case: as made, a response a row.
        positions: for each new place, the token's index among all places of the case; -1 for padding.
        segments: which response of its new row each place belongs to.
    """
    there, inside = positions.clamp(min=0), positions >= 0

    def moved(tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1, *tensor.shape[2:])[there]
        shape = (*inside.shape, *[1] * (flat.dim() - 2))
        # Rubbish where nobody may look.
        rubbish = 0 if not flat.is_floating_point() else torch.nan
        return torch.where(inside.view(shape), flat, torch.tensor(rubbish, dtype=flat.dtype))

    names = ("logits", "old_logits", "ref_logits", "ids", "advantages", "rollout_logprobs", "noise")
    changes = {name: moved(getattr(case, name)) for name in names}
    return replace(case, **changes, mask=moved(case.mask.long()).bool(), segments=segments)


def rows_of(case: Case, rows: slice) -> Case:
    """Some rows of it."""
    values = {name: getattr(case, name) for name in case.__dataclass_fields__}
    return Case(**{name: None if value is None else value[rows] for name, value in values.items()})


def identity(vocabulary: int) -> torch.nn.Linear:
    """An output layer whose hidden states are the logits."""
    head = torch.nn.Linear(vocabulary, vocabulary, bias=False, dtype=torch.float64)
    torch.nn.init.eye_(head.weight)
    return head.requires_grad_(False)


def stats_of(objective: Objective, case: Case, head: Head | None = None, chunk_elements: int = 2**25) -> TokenStats:
    """Statistics of both policies and the reference, the old ones as an off-policy update remembers them."""

    output_layer = head or identity(case.logits.shape[-1])

    def scored(logits: Tensor, which: Pass, old: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = [statistic for statistic in objective.requires if which in statistic.passes]
        return token_stats(logits, case.ids, case.mask, output_layer, 1.0, wanted, old, chunk_elements)

    with torch.no_grad():
        old_logprobs, old_statistics = scored(case.old_logits, "rollout")
        ref_logprobs, referred = scored(case.ref_logits, "reference")
    old_statistics |= referred
    logprobs, statistics = scored(case.logits, "update", old_statistics)
    return TokenStats(
        logprobs,
        old_logprobs,
        case.advantages,
        case.mask,
        case.rollout_logprobs,
        ref_logprobs,
        statistics,
        old_statistics,
        case.noise,
        case.segments,
    )


def loss_of(objective: Objective, case: Case, cuts: Sequence[slice], step: StepContext) -> Tensor:
    """The sum of the micro-batches' losses, planned as `Scorer.planners` does."""
    micros = [stats_of(objective, rows_of(case, rows)) for rows in cuts]
    if objective.within_responses:
        known = objective.count([(micro.loss_mask, micro.segments) for micro in micros], step)
        plans = [objective.plan(micro, Alone(), known) for micro in micros]
    else:
        plans = cut(objective.plan(join(micros), step), micros)
    return torch.stack([objective(*pair).loss for pair in zip(micros, plans, strict=True)]).sum()
