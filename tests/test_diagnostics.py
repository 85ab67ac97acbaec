"""What is logged of the tokens, against formulas written out token by token, however the step is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diagnosed import CUTS, KAPPA, QUADRANTS, RHO, logits_and_ids, make_stats, objective, observed
from torch import Tensor

from rlvr_lightning.evaluation.metrics import ProbabilityHistogram, QuadrantTable
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.types import TokenStats

PARTS = ("knowledge", "reasoning")
EDGES = (0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def quantile(values: Sequence[float], q: float) -> float:
    ordered, position = sorted(values), q * (len(values) - 1)
    below = math.floor(position)
    return ordered[below] + (position - below) * (ordered[min(below + 1, len(values) - 1)] - ordered[below])


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def tokens_of(stats: TokenStats) -> list[dict[str, Any]]:
    """Each token's own numbers, from the logits."""
    logits, old_logits, ids = (values.tolist() for values in logits_and_ids())
    tokens = []
    for i, t in stats.loss_mask.nonzero().tolist():
        p, old, sampled = softmax(logits[i][t]), softmax(old_logits[i][t]), ids[i][t]
        entropy = -sum(x * math.log(x) for x in p)
        phi = [x * (math.log(x) + entropy) for x in p]
        advantage = float(stats.advantages[i, t])
        change = -advantage * (phi[sampled] - sum(x * y for x, y in zip(p, phi, strict=True)))
        sign = "positive" if advantage > 0 else "negative"
        rare = "rare" if -math.log(p[sampled]) > entropy else "likely"
        kept = sum(x for x in old if x > KAPPA * max(old))
        tokens.append(
            {
                "p": p[sampled],
                "old": old[sampled],
                "entropy": entropy,
                "old_entropy": -sum(x * math.log(x) for x in old),
                "change": change,
                "advantage": advantage,
                "quadrant": f"{sign}_{rare}" if advantage else "",
                "ratio": p[sampled] / old[sampled],
                "kl_old": old[sampled] / p[sampled] - math.log(old[sampled] / p[sampled]) - 1,
                "dropped": old[sampled] <= KAPPA * max(old),
                "proxy": old[sampled] / kept,
            }
        )
    return tokens


def expected(stats: TokenStats, variant: str) -> dict[str, float]:
    """Every number of the epoch, from the logits."""
    tokens = tokens_of(stats)
    named: dict[str, float] = {}
    edge = quantile([token["old_entropy"] for token in tokens], 0.7)
    parts = {PARTS[0]: [x for x in tokens if x["old_entropy"] < edge - 1e-12]}
    parts[PARTS[1]] = [x for x in tokens if x not in parts[PARTS[0]]]
    for kind in ("ratio", "kl_old", "entropy"):
        named[f"policy/{kind}"] = mean([x[kind] for x in tokens])
        named |= {f"policy/{kind}/{part}": mean([x[kind] for x in own]) for part, own in parts.items()}
    for quadrant in QUADRANTS:
        own = [x for x in tokens if x["quadrant"] == quadrant]
        assert own, quadrant
        named[f"policy/quadrant_share/{quadrant}"] = len(own) / len(tokens)
        named[f"policy/quadrant_flow/{quadrant}"] = sum(x["change"] for x in own) / len(tokens)
    named["policy/entropy_flow"] = mean([x["change"] for x in tokens])
    for lower, upper in zip(EDGES, (*EDGES[1:], 2), strict=True):
        named[f"policy/prob_hist/{lower:g}"] = mean([lower <= x["p"] < upper for x in tokens])
    negative = [x for x in tokens if x["advantage"] < 0]
    if variant == "paper":
        threshold = quantile([x["old"] for x in tokens], RHO)
        low = [x for x in negative if x["old"] < threshold]
        sparks = sum(not x["dropped"] for x in low)
    else:
        low = sorted(negative, key=lambda x: x["p"])[: int(len(negative) * RHO)]
        sparks = sum(not x["dropped"] and x["p"] < x["proxy"] for x in low)
    noise = sum(x["dropped"] for x in low)
    assert min(sparks, noise) > 1
    named |= {"policy/shield/sparks": sparks, "policy/shield/noise": noise}
    return named | {"policy/tokens_in/shield": sparks / len(tokens)}


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_every_number_by_hand_however_the_step_is_cut(variant: str, cuts: list[int]) -> None:
    built = objective(variant)
    stats = make_stats(built)
    diagnostics = observed(built, stats, cuts)
    logged = diagnostics.drain()
    for name, value in expected(stats, variant).items():
        assert logged[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    # What chooses tokens without marking any is only a share.
    assert logged["policy/tokens_in/cov"] > 0
    assert not [name for name in logged if name.startswith("policy/cov/")]
    assert diagnostics.drain() == {"policy/skipped_steps": 0.0, "policy/idle_steps": 0.0}


def test_quadrants_add_up_to_the_flow_and_bins_to_one() -> None:
    built = objective()
    logged = observed(built, make_stats(built, seed=3), CUTS[2]).drain()
    flows = [logged[f"policy/quadrant_flow/{quadrant}"] for quadrant in QUADRANTS]
    assert sum(flows) == pytest.approx(logged["policy/entropy_flow"], rel=1e-12)
    # A rare token's flow has the sign of its advantage.
    assert flows[1] > 0 > flows[3]
    shares = [value for name, value in logged.items() if name.startswith("policy/prob_hist/")]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("advantage", [1.7, -0.6])
@pytest.mark.parametrize("token", [0, 2, 5])
def test_the_flow_is_the_finite_difference_of_the_entropy(token: int, advantage: float) -> None:
    logits = torch.tensor([2.0, -1.0, 0.3, 0.1, -3.0, -2.0], dtype=torch.float64)

    def entropy(values: Tensor) -> float:
        return float(torch.special.entr(values.softmax(-1)).sum())

    step = 1e-6
    direction = advantage * (torch.nn.functional.one_hot(torch.tensor(token), 6) - logits.softmax(-1))
    difference = (entropy(logits + step * direction) - entropy(logits - step * direction)) / (2 * step)
    built = Objective(SinglePart(), ClipKL(), {}, TokenMean())
    mask, ids = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[token]])
    logprobs, statistics = token_stats(logits.view(1, 1, 6), ids, mask, lambda x: x, 1.0, [Entropy(), EntropyFlow()])
    advantages = torch.full((1, 1), advantage, dtype=torch.float64)
    stats = TokenStats(logprobs, logprobs, advantages, mask, statistics=statistics, old_statistics=statistics)
    flow = observed(built, stats, [1]).drain()["policy/entropy_flow"]
    assert flow == pytest.approx(difference, rel=1e-6)
    assert abs(flow) > 1e-3


def test_bins_end_at_their_edges_and_sort_as_text() -> None:
    metric = ProbabilityHistogram()
    assert list(metric.bins) == sorted(metric.bins) == [f"{edge:g}" for edge in EDGES]
    edges = torch.tensor(EDGES)
    # 0 itself, each edge from both sides, 1, one that rounding lifted above it, and one that is not to be looked at.
    logprobs = torch.cat([edges[:1], edges[1:] * (1 - 1e-5), edges[1:] * (1 + 1e-5), torch.ones(3)]).log()
    logprobs[-2:] = torch.tensor([1e-6, torch.nan])
    mask = torch.arange(len(logprobs)) < len(logprobs) - 1
    metric.update(logprobs[None], mask[None])
    assert metric.counts.tolist() == [2] * 9 + [3]
    assert metric.compute().tolist() == pytest.approx([2 / 21] * 9 + [3 / 21])


def test_a_quadrant_needs_a_sign_and_masked_rubbish_is_not_looked_at() -> None:
    metric = QuadrantTable()
    advantages, mask = torch.tensor([[0.0, 1.0, torch.nan]]), torch.tensor([[True, True, False]])
    rubbish = torch.tensor([[-1.0, -1.0, torch.nan]])
    metric.update(advantages, rubbish, torch.ones(1, 3), rubbish, mask)
    shares, flows = metric.compute().tolist()
    # A surprisal that equals the entropy is likely.
    assert shares == [0.5, 0, 0, 0]
    assert flows == [-0.5, 0, 0, 0]


def test_nothing_is_logged_of_rows_without_weight() -> None:
    built = objective()
    stats = make_stats(built)
    logged = observed(built, replace(stats, loss_mask=torch.zeros_like(stats.loss_mask)), CUTS[1]).drain()
    assert {name.split("/")[1] for name in logged} == {"loss", "skipped_steps", "idle_steps"}
    assert all(value == 0 for value in logged.values())
