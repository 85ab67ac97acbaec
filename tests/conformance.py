"""Recompute a folder of golden cases through the public components: `python tests/conformance.py DIR`.

Each case is a `.safetensors` file with float64 tensors and, under the metadata key `meta`, the algorithm, its settings
and scalar expectations as JSON. Exit status 1 if any case fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlvr_lightning.errors import DataError, RLVRError
from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.methods.advantages.rloo import RLOO
from rlvr_lightning.methods.aggregators import SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from rlvr_lightning.methods.constraints.cispo import CISPO
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.gmpo import GMPO
from rlvr_lightning.methods.constraints.gspo import GSPO
from rlvr_lightning.methods.constraints.kl import kl_estimate
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
class Check:
    """One comparison: the error seen and the most that passes."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # nan fails


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


def checks(meta: Meta, tensors: Tensors) -> Iterator[Check]:
    """Every expectation a case holds."""
    if meta.get("kind") == "kl_estimators":
        yield from kl_checks(tensors)
    elif meta.get("kind") == "advantages":
        yield from advantage_checks(meta, tensors)
    else:
        yield from objective_checks(meta, tensors)


def objective_checks(meta: Meta, tensors: Tensors) -> Iterator[Check]:
    computed, mask = compute(meta, tensors), tensors["response_mask"].bool()
    stats, expected = computed.stats, tensors["expected_loss"][0]
    yield Check("loss", float((computed.output.loss.detach() - expected).abs() / expected.abs().clamp(min=1e-12)), 1e-7)
    yield Check("gradient", widest(computed.grad_logits, tensors["expected_grad_logits"]), 1e-7)
    seen = {
        "log_prob": stats.logprobs,
        "old_log_prob": stats.old_logprobs,
        "ref_log_prob": stats.ref_logprobs,
        "entropy": stats.statistics["entropy"],
    }
    for name, values in seen.items():
        if f"expected_{name}" in tensors and values is not None:
            yield Check(name, widest(values.detach()[mask], tensors[f"expected_{name}"][mask]), 1e-9)
    for part in PARTS:
        if f"expected_{part}_mask" in tensors:
            yield masks(f"{part} mask", computed.plan.masks[part], tensors[f"expected_{part}_mask"])
    if "expected_kept_mask" in tensors:
        yield masks("kept mask", computed.plan.masks["reasoning"], tensors["expected_kept_mask"])
    if "expected_proxy_log_prob" in tensors:
        yield from proxy_checks(computed, tensors, mask)
    if "regularized_tokens" in meta.get("expected", {}):
        chosen = int(computed.plan.masks["lp_reg"].sum())
        yield Check("regularized tokens", abs(chosen - meta["expected"]["regularized_tokens"]), 0)


def proxy_checks(computed: Computed, tensors: Tensors, mask: Tensor) -> Iterator[Check]:
    (name,) = [key for key in computed.stats.old_statistics if key.startswith("proxy_logprobs")]
    proxy, expected = computed.stats.old_statistics[name], tensors["expected_proxy_log_prob"]
    kept = proxy.isfinite() & mask
    yield Check("proxy", widest(proxy[kept], expected[kept]), 1e-9)
    # What the reference code gives a log-probability near -1e4 is dropped altogether here.
    yield masks("dropped as noise", ~proxy.isfinite() & mask, (expected < -9000) & mask)


def kl_checks(tensors: Tensors) -> Iterator[Check]:
    kinds = [key.removeprefix("expected_") for key in tensors if key.startswith("expected_")]
    for kind in kinds:
        found = kl_estimate(tensors["log_prob"], tensors["ref_log_prob"], kind)  # type: ignore[arg-type]
        yield Check(kind, widest(found, tensors[f"expected_{kind}"]), 1e-9)


def advantage_checks(meta: Meta, tensors: Tensors) -> Iterator[Check]:
    epsilon = meta["epsilon"]
    estimators = {
        "grpo": GroupRelative(epsilon=epsilon),
        "dr_grpo": GroupRelative(normalize=False, epsilon=epsilon),
        "rloo": RLOO(),
    }
    for name, estimator in estimators.items():
        worst = 0.0
        for group in tensors["group"].unique():
            members = tensors["group"] == group
            rewards = tensors["rewards"][members].unsqueeze(0)
            found = estimator(rewards, torch.ones_like(rewards, dtype=torch.bool)).squeeze(0)
            worst = max(worst, widest(found, tensors[f"expected_{name}"][members]))
        yield Check(name, worst, 1e-7)


def widest(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; 0 of nothing."""
    return float((one - other).abs().max()) if one.numel() else 0.0


def masks(name: str, one: Tensor, other: Tensor) -> Check:
    """Masks must be equal: the error is the number of tokens on which they differ."""
    return Check(name, int((one.bool() != other.bool()).sum()), 0)


def main(arguments: list[str]) -> int:
    """Compare every case of a folder and print the table."""
    console = Console(width=110)
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        console.print("usage: python tests/conformance.py DIR (a folder of golden .safetensors cases)")
        return 2
    files = sorted(Path(arguments[0]).glob("*.safetensors"))
    table = Table("case", "check", "error", "tolerance", "", title=f"{len(files)} cases", title_justify="left")
    failed, messages = 0, []
    for path in files:
        try:
            found = list(checks(*read(path)))
        except (RLVRError, KeyError, RuntimeError) as error:
            found = []
            table.add_row(path.stem, "not computed, see below", "", "", "[red]fails")
            messages.append(f"{path.stem}: {type(error).__name__}: {error}")
        for check in found:
            mark = "passes" if check.passed else "[red]fails"
            table.add_row(path.stem, check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", mark)
        failed += not found or not all(check.passed for check in found)
    console.print(table)
    for message in messages:
        console.print(message, soft_wrap=True, markup=False)
    console.print(f"{len(files) - failed} of {len(files)} cases pass")
    return int(failed > 0 or not files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
