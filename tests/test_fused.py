"""The pass with analytic gradients against autograd: every component, every cut of the vocabulary's work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from objectives import MEAN, OBJECTIVES, identity, random_case, stats_of
from torch import Tensor, nn

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxyLogprob
from rlvr_lightning.methods.regularizers.proxy_kl import ProxyKL
from rlvr_lightning.objective import fused
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.tile import ClosedStatistic, Tile
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.protocols import VocabStatistic
from rlvr_lightning.types import Pass

FILTER = Filter(0.1, "relative")
KL = ProxyKL(FILTER, 3)


@dataclass(frozen=True)
class Collision:
    """sum_v p_v^2: a user's own, whose gradient is left to autograd."""

    differentiable: ClassVar[bool] = True
    name: ClassVar[str] = "collision"
    passes: ClassVar[tuple[Pass, ...]] = ("update", "on_policy")

    def __call__(self, logprobs: Tensor, token_ids: Tensor, old: Mapping[str, Tensor]) -> Tensor:
        return logprobs.exp().square().sum(-1)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_has_the_loss_and_gradient_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 40)
    case = random_case(3, 6, on_policy="opefo" in name)
    objective = OBJECTIVES[name](MEAN)
    head, found = identity(case.logits.shape[-1]), []
    for way, chunk in ((head, 2**25), (head, 100), (lambda x: x, 2**25), (lambda x: x, 100)):
        stats = stats_of(objective, case, way, chunk)
        loss = objective(stats, objective.plan(stats, Step())).loss
        found.append((loss.detach(), *torch.autograd.grad(loss, case.logits)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_statistic_and_every_gradient(old: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 30)
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(4, 9, bias=bias, dtype=torch.float64)
    hidden = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(9, (3, 5), generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.7
    before = torch.randn(3, 5, 9, generator=generator, dtype=torch.float64)
    held = token_stats(before, ids, mask, lambda x: x, 1.0, [KL.support])[1] if old else None
    statistics: list[VocabStatistic] = [
        Entropy(differentiable=True),
        EntropyFlow(),
        ProxyLogprob(FILTER),
        KL,
        Collision(),
    ]
    found = []
    for way in (head, lambda x: head(x)):
        for chunk in (9, 27, 1000):
            head.zero_grad()
            leaf = hidden.clone().requires_grad_()
            logprobs, named = token_stats(leaf, ids, mask, way, 0.7, statistics, held, chunk)
            pull = named[KL.name] * torch.arange(15).view(3, 5).remainder(2)  # of some tokens
            (logprobs.sum() + 0.3 * named["entropy"].sum() + 2 * pull.sum() + named["collision"].sum()).backward()
            grads = [leaf.grad, *(parameter.grad.clone() for parameter in head.parameters())]
            found.append([logprobs.detach(), *(values.detach() for values in named.values()), *grads])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-14)


def test_the_penaltys_gradient_is_pi_minus_proxy() -> None:
    logits = torch.tensor([[2.0, 1.0, -3.0]], dtype=torch.float64)
    p = logits.softmax(-1)[0]
    proxy = torch.stack([p[0], p[1], torch.zeros_like(p[2])]) / (p[0] + p[1])
    leaf, ids, mask = logits.view(1, 1, 3).clone().requires_grad_(), torch.tensor([[2]]), torch.ones(1, 1).bool()
    _, named = token_stats(leaf, ids, mask, identity(3), 1.0, [KL])
    named[KL.name].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[0, 0], p - proxy, rtol=1e-12, atol=1e-15)
    assert math.isclose(float(named[KL.name]), float(-(p[0] + p[1]).log()), rel_tol=1e-12)


def test_what_is_not_trained_gets_no_gradient_and_costs_none() -> None:
    head = nn.Linear(4, 7, bias=False).requires_grad_(False)
    leaf = torch.randn(1, 3, 4, requires_grad=True)
    ids, mask = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)
    logprobs, named = token_stats(leaf, ids, mask, head, 1.0, [Entropy(), EntropyFlow()])
    assert not named["entropy"].requires_grad
    assert not named["entropy_flow"].requires_grad
    logprobs.sum().backward()
    assert head.weight.grad is None
    assert leaf.grad is not None


def test_without_tokens_there_is_still_a_graph() -> None:
    head = nn.Linear(4, 7)
    leaf = torch.randn(2, 3, 4, requires_grad=True)
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool)
    logprobs, named = token_stats(leaf, ids, mask, head, 1.0, [Entropy()])
    assert logprobs.tolist() == named["entropy"].tolist() == [[0.0] * 3] * 2
    logprobs.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().max() == 0


def test_a_hooked_layer_is_left_to_autograd() -> None:
    head = nn.Linear(4, 7, bias=False)
    head.register_forward_hook(lambda module, arguments, output: 2 * output)
    hidden = torch.randn(1, 1, 4)
    found, _ = token_stats(hidden, torch.tensor([[1]]), torch.ones(1, 1).bool(), head, 1.0)
    assert math.isclose(float(found), float((2 * hidden @ head.weight.t()).log_softmax(-1)[0, 0, 1]), rel_tol=1e-5)


def test_a_differentiable_statistic_without_a_gradient_is_a_mistake() -> None:
    class Forgotten(ClosedStatistic):
        name = "forgotten"
        differentiable = True
        passes = ("update",)

        def value(self, tile: fused.Tile) -> Tensor:
            return tile.entropy

    leaf = torch.randn(1, 1, 4, requires_grad=True)
    _, named = token_stats(leaf, torch.tensor([[1]]), torch.ones(1, 1).bool(), nn.Linear(4, 7), 1.0, [Forgotten()])
    with pytest.raises(AssertionError, match="forgotten does not state its gradient"):
        named["forgotten"].sum().backward()


@pytest.mark.parametrize(("inclusive", "kept"), [(True, 1.0), (False, 0.5)])
def test_a_probability_at_the_threshold_is_kept_where_the_filter_includes_it(inclusive: bool, kept: float) -> None:
    # Twice log 1/2 is log 1/4 to the last bit.
    logprobs = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    mass, tau = Filter(0.5, "relative", inclusive).log_mass(Tile(logprobs, torch.tensor([1]), {}))
    assert float(tau) == float(logprobs[0, 1])
    assert mass.exp().tolist() == pytest.approx([kept])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("vocabulary", [3, 1_000, 1_025, 151_936])
def test_log_probabilities_may_take_the_place_of_logits(vocabulary: int, device: str) -> None:
    """No promise of PyTorch's: that its kernel reads each number for the last time before it writes there."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    for dtype in (torch.float32, torch.float64):
        logits = 5 * torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
        expected = torch.log_softmax(logits, dim=-1)
        torch.log_softmax(logits, dim=-1, out=logits)
        assert torch.equal(logits, expected)
