"""The published reference code's numbers, reproduced by `variant=reference` through the public components."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rlvr_lightning.advantages.group_relative import GroupRelative
from rlvr_lightning.aggregators import SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from rlvr_lightning.constraints.clip_kl import ClipKL
from rlvr_lightning.constraints.kl import ESTIMATORS, kl_estimate
from rlvr_lightning.objective import LossOutput, Objective
from rlvr_lightning.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.partitioners.single import SinglePart
from rlvr_lightning.regularizers.lp_reg import LpReg
from rlvr_lightning.step import Step
from rlvr_lightning.token_stats import token_stats
from rlvr_lightning.types import StepPlan, TokenStats

OWN = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"
AGGREGATORS = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMeanTokenMean(),
    "seq-mean-token-sum": SequenceMeanTokenSum(),
}


def cases(prefix: str) -> list[Path]:
    """Cases of the repository, and those beside it that are not among them."""
    found = {path.name: path for folder in (SHARED, OWN) for path in folder.glob(f"{prefix}*.safetensors")}
    return [found[name] for name in sorted(found)]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["meta"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@dataclass
class Computed:
    output: LossOutput
    plan: StepPlan
    stats: TokenStats
    grad_logits: Tensor


def compute(objective: Objective, tensors: dict[str, Tensor]) -> Computed:
    """Logits to loss and gradient, through `token_stats` in small chunks."""
    mask, ids = tensors["response_mask"].bool(), tensors["response_ids"]
    logits = tensors["logits"].clone().requires_grad_()

    def stats_of(values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return token_stats(values, ids, mask, lambda x: x, 1.0, objective.requires, chunk_elements=500)

    logprobs, statistics = stats_of(logits)
    with torch.no_grad():
        old_logprobs, old_statistics = stats_of(tensors["old_logits"])
        ref_logprobs, _ = stats_of(tensors["ref_logits"])
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


def check(computed: Computed, tensors: dict[str, Tensor]) -> None:
    expected = tensors["expected_loss"][0]
    assert abs(computed.output.loss.detach() - expected) <= 1e-7 * abs(expected)
    assert (computed.grad_logits - tensors["expected_grad_logits"]).abs().max() <= 1e-7
    mask = tensors["response_mask"].bool()
    for name, values in (("log_prob", computed.stats.logprobs), ("entropy", computed.stats.statistics["entropy"])):
        difference = (values - tensors[f"expected_{name}"]).detach()[mask]
        assert difference.abs().max() < 1e-12, name


@pytest.mark.parametrize("path", cases("archer"), ids=lambda path: path.stem)
def test_archer(path: Path) -> None:
    meta, tensors = read(path)

    def per_part(name: str, index: int | None = None) -> dict[str, float]:
        pair = {part: meta[f"{part}_{name}"] for part in ("knowledge", "reasoning")}
        return {part: value if index is None else value[index] for part, value in pair.items()}

    objective = Objective(
        EntropyQuantile(meta["quantile"], variant="reference"),
        ClipKL(per_part("clip", 0), per_part("clip", 1), meta["dual_clip"], per_part("kl_coef"), variant="reference"),
        {},
        AGGREGATORS[meta["aggregation"]],
    )
    computed = compute(objective, tensors)
    check(computed, tensors)
    for part in ("knowledge", "reasoning"):
        assert torch.equal(computed.plan.masks[part], tensors[f"expected_{part}_mask"].bool())
        coef = meta[f"{part}_kl_coef"]
        assert float(computed.output.terms[f"kl/{part}"]) == pytest.approx(
            coef * meta["expected"][f"{part}_kl"], rel=1e-7, abs=1e-15
        )
    assert float(computed.output.terms["surrogate"]) == pytest.approx(meta["expected"]["pg_loss"], rel=1e-7)


@pytest.mark.parametrize("path", cases("lp_reg"), ids=lambda path: path.stem)
def test_lp_reg(path: Path) -> None:
    meta, tensors = read(path)
    regularizer = LpReg(
        meta["low_probability_fraction"],
        meta["threshold"],
        "absolute" if meta["threshold_kind"] == "absolute" else "relative",
        meta["coef"],
        meta["kl_estimator"],
        variant="reference",
    )
    objective = Objective(
        SinglePart(), ClipKL(*meta["clip"]), {"lp_reg": regularizer}, AGGREGATORS[meta["aggregation"]]
    )
    computed = compute(objective, tensors)
    check(computed, tensors)
    assert int(computed.plan.choices["lp_reg"].sum()) == meta["expected"]["regularized_tokens"]
    proxy = computed.stats.old_statistics["proxy_logprobs"]
    kept = proxy.isfinite() & tensors["response_mask"].bool()
    assert kept.any()
    assert (proxy - tensors["expected_proxy_log_prob"])[kept].abs().max() < 1e-12
    # What the reference code gives a log-probability near -1e4 is dropped altogether here.
    dropped = ~proxy.isfinite() & tensors["response_mask"].bool()
    assert (tensors["expected_proxy_log_prob"][dropped] < -9000).all()


@pytest.mark.parametrize("path", cases("ppo_clip"), ids=lambda path: path.stem)
def test_ppo_clip(path: Path) -> None:
    meta, tensors = read(path)
    constraint = ClipKL(*meta["clip"], dual_clip=meta["dual_clip"])
    computed = compute(Objective(SinglePart(), constraint, {}, AGGREGATORS[meta["aggregation"]]), tensors)
    check(computed, tensors)
    assert computed.output.clipped is not None
    share = computed.output.clipped[tensors["response_mask"].bool()].double().mean()
    whole = meta["expected"]["pg_clipfrac"] + meta["expected"]["pg_clipfrac_lower"]
    assert float(share) == pytest.approx(whole, abs=1e-7)


@pytest.mark.parametrize("kind", sorted(ESTIMATORS))
def test_kl_estimators(kind: Any) -> None:
    _, tensors = read(OWN / "kl_estimators.safetensors")
    computed = kl_estimate(tensors["log_prob"], tensors["ref_log_prob"], kind)
    torch.testing.assert_close(computed, tensors[f"expected_{kind}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("normalize", "name"), [(True, "grpo"), (False, "dr_grpo")])
def test_advantages(normalize: bool, name: str) -> None:
    meta, tensors = read(OWN / "advantages.safetensors")
    estimator = GroupRelative(normalize=normalize, epsilon=meta["epsilon"])
    checked = 0
    for group in tensors["group"].unique():
        members = tensors["group"] == group
        if members.sum() < 2:  # a group of one is refused when the run is built
            continue
        rewards = tensors["rewards"][members].unsqueeze(0)
        computed = estimator(rewards, torch.ones_like(rewards, dtype=torch.bool)).squeeze(0)
        torch.testing.assert_close(computed, tensors[f"expected_{name}"][members], rtol=1e-9, atol=1e-12)
        checked += len(computed)
    assert checked > 10
