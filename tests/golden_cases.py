"""Golden cases: read, and computed through the public components."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlvr_lightning.errors import DataError
from rlvr_lightning.methods.aggregators import SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from rlvr_lightning.methods.constraints.cispo import CISPO
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.gmpo import GMPO
from rlvr_lightning.methods.constraints.gspo import GSPO
from rlvr_lightning.methods.constraints.only_part import OnlyPart
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.partitioners.top_entropy import TopEntropy
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.protocols import Aggregator, ConstraintPolicy
from rlvr_lightning.types import StepPlan, TokenStats

Meta = dict[str, Any]
Tensors = dict[str, Tensor]
AGGREGATORS: dict[str, Aggregator] = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMeanTokenMean(),
    "seq-mean-token-sum": SequenceMeanTokenSum(),
    "token-mean over the kept tokens": TokenMean(),
    "sequence geometric mean, then mean over sequences": SequenceMeanTokenMean(),
}
PARTS = ("knowledge", "reasoning")


@dataclass(frozen=True)
class Computed:
    """A case computed: loss with its summands, what was chosen, the statistics, the gradient."""

    output: LossOutput
    plan: StepPlan
    stats: TokenStats
    grad_logits: Tensor


def read(path: Path) -> tuple[Meta, Tensors]:
    """A case's settings and tensors.

    Raises:
        DataError: the file is not a case.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            return meta, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise DataError(f"{path} is not a golden case: {error}") from error


def aggregator(meta: Meta) -> Aggregator:
    """The aggregation a case names."""
    if meta["aggregation"] not in AGGREGATORS:
        raise DataError(f"unknown aggregation {meta['aggregation']!r}")
    return AGGREGATORS[meta["aggregation"]]


def clip_range(meta: Meta) -> tuple[float, float]:
    """Lower and upper width; one number stands for both."""
    clip = meta["clip"]
    return (clip[0], clip[1]) if isinstance(clip, list) else (clip, clip)


def single(constraint: ConstraintPolicy) -> Callable[[Meta], Objective]:
    return lambda meta: Objective(SinglePart(), constraint, {}, aggregator(meta))


def archer(meta: Meta) -> Objective:
    def per_part(name: str, index: int | None = None) -> dict[str, float]:
        pair = {part: meta[f"{part}_{name}"] for part in PARTS}
        return {part: value if index is None else value[index] for part, value in pair.items()}

    constraint = ClipKL(
        per_part("clip", 0),
        per_part("clip", 1),
        meta.get("dual_clip"),
        per_part("kl_coef"),
        meta.get("kl_estimator", "k3"),
        "reference",
    )
    return Objective(EntropyQuantile(meta["quantile"], variant="reference"), constraint, {}, aggregator(meta))


def lp_reg(meta: Meta) -> Objective:
    regularizer = LpReg(
        meta["low_probability_fraction"],
        meta["threshold"],
        "absolute" if meta["threshold_kind"].startswith("absolute") else "relative",
        meta["coef"],
        meta.get("kl_estimator", "k3"),
        "reference",
        meta.get("temperature", 1.0),
    )
    constraint = ClipKL(*clip_range(meta), meta.get("dual_clip"))
    return Objective(SinglePart(), constraint, {"lp_reg": regularizer}, aggregator(meta))


def eighty_twenty(meta: Meta) -> Objective:
    constraint = OnlyPart("reasoning", ClipKL(*clip_range(meta), meta.get("dual_clip")))
    return Objective(TopEntropy(meta["kept_fraction"]), constraint, {}, aggregator(meta))


def kl_cov(meta: Meta) -> Objective:
    regularizer = KLCov(meta["kl_cov_ratio"], meta["kl_coef"])
    return Objective(SinglePart(), ClipKL(1.0, float("inf")), {"kl_cov": regularizer}, aggregator(meta))


OBJECTIVES: dict[str, Callable[[Meta], Objective]] = {
    "archer": archer,
    "lp_reg": lp_reg,
    "ppo_clip": lambda meta: single(ClipKL(*clip_range(meta), meta.get("dual_clip")))(meta),
    "gspo": lambda meta: single(GSPO(*clip_range(meta)))(meta),
    "gmpo": lambda meta: single(GMPO(*clip_range(meta)))(meta),
    "cispo": lambda meta: single(CISPO(*clip_range(meta)))(meta),
    "sapo": lambda meta: single(SAPO(meta["tau_pos"], meta["tau_neg"]))(meta),
    "kl_cov": kl_cov,
    "eighty_twenty": eighty_twenty,
}


def compute(meta: Meta, tensors: Tensors) -> Computed:
    """Logits to loss and gradient, through `token_stats` in small chunks."""
    if meta["algorithm"] not in OBJECTIVES:
        raise DataError(f"unknown algorithm {meta['algorithm']!r}: known are {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[meta["algorithm"]](meta)
    mask, ids = tensors["response_mask"].bool(), tensors["response_ids"]
    temperature = meta.get("temperature", 1.0)
    logits = tensors["logits"].clone().requires_grad_()
    # An output layer whose hidden states are the logits.
    head = torch.nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype)
    torch.nn.init.eye_(head.weight).requires_grad_(False)

    def stats_of(values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return token_stats(values, ids, mask, head, temperature, objective.requires, chunk_elements=500)

    logprobs, statistics = stats_of(logits)
    with torch.no_grad():
        old_logprobs, _ = stats_of(tensors["old_logits"])
        _, old_statistics = stats_of(tensors[meta.get("proxy_from", "old_logits")])
        ref_logprobs = stats_of(tensors["ref_logits"])[0] if "ref_logits" in tensors else None
    stats = TokenStats(
        logprobs,
        old_logprobs,
        tensors["advantages"],
        mask,
        ref_logprobs=ref_logprobs,
        statistics=statistics,
        old_statistics=old_statistics,
    )
    plan = objective.plan(stats, Step())
    output = objective(stats, plan)
    output.loss.backward()
    assert logits.grad is not None
    return Computed(output, plan, stats, logits.grad)
