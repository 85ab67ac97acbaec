"""The shield's forms by hand in float64: whose proxy, which tokens, which penalty."""

from __future__ import annotations

import pytest
import torch
from objectives import random_case, single, stats_of
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.methods.regularizers.only_places import OnlyPlaces
from rlvr_lightning.methods.regularizers.spark_shield import SparkShield
from rlvr_lightning.objective.joining import join
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import Regularizer
from rlvr_lightning.types import TokenStats

RHO, KAPPA, COEF = 0.7, 0.15, 0.8


def proxy_of(logits: Tensor) -> Tensor:
    """Filtered and renormalised."""
    probs = logits.softmax(-1)
    kept = torch.where(probs > KAPPA * probs.amax(-1, keepdim=True), probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def sampled(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("ceiling", [1.0, 0.08])
@pytest.mark.parametrize("penalty", ["full", "k3"])
@pytest.mark.parametrize("source", ["old", "current", "reference"])
def test_value_and_gradient_by_hand(source: str, penalty: str, ceiling: float) -> None:
    case = random_case(3, 30)
    shield = SparkShield(RHO, KAPPA, source, penalty, ceiling, COEF)  # type: ignore[arg-type]
    objective = single(CappedRatio(1.2), shield=shield)(TokenMean())
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    found = objective.parts(stats, plan)["shield"]
    (gradient,) = torch.autograd.grad(found, case.logits)

    logits = case.logits.detach().clone().requires_grad_()
    origin = {"old": case.old_logits, "current": logits.detach(), "reference": case.ref_logits}[source]
    chosen_on = (logits.detach() if source == "current" else case.old_logits).softmax(-1)
    probs, proxy = sampled(chosen_on, case.ids), proxy_of(origin)
    quantile = float(torch.quantile(probs[case.mask], RHO))
    assert (quantile > ceiling) == (ceiling < 1)
    threshold = min(quantile, ceiling)
    low = case.mask & (case.advantages < 0) & (probs < threshold)
    sparks = low & (sampled(proxy, case.ids) > 0)
    assert torch.equal(plan.choices["shield"], low * torch.where(sparks, 1, 2))
    assert 0 < int(sparks.sum()) < int(low.sum()) < int(case.mask.sum())
    logprobs = logits.log_softmax(-1)
    if penalty == "full":
        pull = torch.where(proxy > 0, proxy * (proxy.clamp(min=1e-300).log() - logprobs), 0.0).sum(-1)
    else:
        gap = torch.where(sparks, sampled(proxy, case.ids), 1.0).log() - sampled(logprobs, case.ids)
        pull = gap.exp() - gap - 1
    expected = COEF * torch.where(sparks, pull, 0.0).sum() / case.mask.sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-9, atol=1e-12)


def test_with_the_old_proxy_it_is_the_papers_form() -> None:
    case = random_case(3, 30)
    found = {}
    for name, regularizer in {
        "ours": SparkShield(RHO, KAPPA, "old", "full", coef=COEF),
        "theirs": LpReg(RHO, KAPPA, coef=COEF),
    }.items():
        objective = single(CappedRatio(1.2), it=regularizer)(TokenMean())
        stats = stats_of(objective, case)
        found[name] = objective.parts(stats, objective.plan(stats, Step()))["it"]
    assert found["ours"].item() == found["theirs"].item() != 0


@pytest.mark.parametrize("regularizer", [LpReg(RHO, KAPPA), SparkShield(RHO, KAPPA, "old")], ids=["lp_reg", "shield"])
def test_a_token_as_probable_as_the_quantile_is_not_below_it(regularizer: Regularizer) -> None:
    """Whatever rounding makes of a logarithm's exponential: the first tokens of a group are all as probable."""
    for logprob in torch.linspace(-9, -0.1, 200):
        known = torch.full((1, 5), float(logprob))
        (proxy,) = [one.name for one in regularizer.requires if one.name.startswith("proxy_logprobs")]
        stats = TokenStats(known, known, -torch.ones(1, 5), known < 0, old_statistics={proxy: known})
        assert not regularizer.plan(stats, torch.zeros(1, 5, dtype=torch.long), Step()).any()


def test_only_the_references_proxy_needs_the_reference() -> None:
    assert SparkShield().requires_ref
    assert not SparkShield(source="old").requires_ref
    assert [statistic.passes for statistic in SparkShield(penalty="full").requires] == [
        ("reference",),
        ("reference",),
        ("update", "on_policy"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantile": 1.0}, r"SparkShield.quantile must be in \(0, 1\); got 1.0"),
        ({"threshold": 0.0}, r"SparkShield.threshold must be in \(0, 1\); got 0.0"),
        ({"ceiling": 0.0}, r"SparkShield.ceiling must be in \(0, 1\]; got 0.0"),
        ({"source": "new"}, "SparkShield.source must be one of old, current, reference; got 'new'"),
        ({"penalty": "k1"}, "SparkShield.penalty must be one of full, k3; got 'k1'"),
        ({"coef": -1.0}, "SparkShield.coef must be at least 0; got -1.0"),
        ({"support": 0}, "SparkShield.support must be at least 1; got 0"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparkShield(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_regularizer_at_some_places_alone(tokens: int) -> None:
    case, whole = random_case(3, 30), LpReg(RHO, KAPPA)
    (plain, first, rest) = (
        single(CappedRatio(1.2), it=regularizer)(TokenMean())
        for regularizer in (whole, OnlyPlaces(whole, "first", tokens), OnlyPlaces(whole, "rest", tokens))
    )
    stats = stats_of(plain, case)
    plans = [objective.plan(stats, Step()) for objective in (plain, first, rest)]
    begin = torch.arange(case.mask.shape[1]) < tokens
    chosen = plans[0].choices["it"]
    assert torch.equal(plans[1].choices["it"], chosen * begin)
    assert torch.equal(plans[2].choices["it"], chosen * ~begin)
    assert 0 < int((plans[1].choices["it"] == 1).sum()) < int((chosen == 1).sum())
    values = [objective.parts(stats, plan)["it"] for objective, plan in zip((plain, first, rest), plans, strict=True)]
    assert values[0].item() == pytest.approx(values[1].item() + values[2].item(), rel=1e-12)
    # In a packed row the places are those in each response.
    joined = join([stats])
    packed = first.plan(joined, Step()).choices["it"]
    assert torch.equal(packed.view_as(chosen), chosen * begin)


def test_some_places_of_nothing_are_refused() -> None:
    for settings, message in (
        ({"where": "last"}, "OnlyPlaces.where must be one of first, rest"),
        ({"tokens": 0}, "tokens must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            OnlyPlaces(LpReg(), **settings)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="OnlyPlaces needs a regularizer that chooses tokens; EntropyBonus acts on all of them"
    ):
        OnlyPlaces(EntropyBonus())
