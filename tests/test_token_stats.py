"""One pass over the logits, against formulas written out in float64."""

from __future__ import annotations

import math

import torch

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxyLogprob
from rlvr_lightning.methods.regularizers.proxy_kl import ProxyKL
from rlvr_lightning.objective.statistics import Entropy, merge_statistics
from rlvr_lightning.objective.token_stats import token_stats

MASK = torch.tensor([[True, True, False], [True, False, False]])
IDS = torch.tensor([[2, 0, 1], [3, 1, 1]])


def logits() -> torch.Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def probabilities(row: torch.Tensor, temperature: float) -> list[float]:
    weights = [math.exp(float(value) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def test_logprob_and_entropy_by_hand() -> None:
    values = logits()
    logprobs, statistics = token_stats(values, IDS, MASK, lambda x: x, 0.7, [Entropy()])
    for row, column in ((0, 0), (0, 1), (1, 0)):
        p = probabilities(values[row, column], 0.7)
        assert math.isclose(float(logprobs[row, column]), math.log(p[int(IDS[row, column])]), rel_tol=1e-12)
        entropy = -sum(x * math.log(x) for x in p)
        assert math.isclose(float(statistics["entropy"][row, column]), entropy, rel_tol=1e-12)
    assert logprobs[~MASK].tolist() == [0.0, 0.0, 0.0]


def test_proxy_by_hand() -> None:
    values = logits()
    keep = Filter(0.3, "relative")
    logprob, penalty = ProxyLogprob(keep), ProxyKL(keep, 64)
    _, statistics = token_stats(values, IDS, MASK, lambda x: x, 1.0, [logprob, penalty])
    for row, column in ((0, 0), (0, 1), (1, 0)):
        p = probabilities(values[row, column], 1.0)
        kept = [x if x > 0.3 * max(p) else 0.0 for x in p]
        proxy = [x / sum(kept) for x in kept]
        sampled = proxy[int(IDS[row, column])]
        expected = math.log(sampled) if sampled else -math.inf
        found = float(statistics[logprob.name][row, column])
        assert found == expected or math.isclose(found, expected, rel_tol=1e-12)
        kl = sum(q * math.log(q / x) for q, x in zip(proxy, p, strict=True) if q)
        assert math.isclose(float(statistics[penalty.name][row, column]), kl, rel_tol=1e-12)


def test_chunks_change_neither_values_nor_gradients() -> None:
    head = torch.nn.Linear(4, 7, bias=False, dtype=torch.float64)
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    # Off-policy: the proxy's support is another policy's, and is cut into chunks with the tokens.
    penalty = ProxyKL(Filter(0.1, "relative"), 3)
    before = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    _, old = token_stats(before, ids, mask, lambda x: x, 1.0, [penalty.support])
    found = []
    for chunk_elements in (7, 21, 10**6):
        head.weight.grad, leaf = None, hidden.clone().requires_grad_()
        statistics = [Entropy(differentiable=True), penalty]
        logprobs, extra = token_stats(leaf, ids, mask, head, 1.0, statistics, old, chunk_elements)
        (logprobs.sum() + 0.3 * extra["entropy"].sum() + 2.0 * extra[penalty.name].sum()).backward()
        found.append((logprobs.detach(), extra["entropy"].detach(), leaf.grad, head.weight.grad))
    for other in found[1:]:
        for mine, whole in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-14)
    assert found[0][2] is not None
    assert found[0][2][~mask].abs().max() == 0


def test_no_row_of_the_vocabulary_is_kept_for_the_backward_pass() -> None:
    head = torch.nn.Linear(4, 7, bias=False)
    hidden, widths = torch.randn(3, 5, 4, requires_grad=True), []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        widths.append(tensor.shape[-1] if tensor.dim() else 0)
        return tensor

    def passed() -> tuple[set[int], bool]:
        widths.clear()
        ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logprobs, _ = token_stats(hidden, ids, mask, head, 1.0, [Entropy(differentiable=True)], None, 14)
        return set(widths), logprobs.requires_grad

    kept, trains = passed()
    assert trains
    assert 4 in kept
    assert 7 not in kept
    with torch.no_grad():
        assert passed() == (set(), False)


def test_half_precision_logits_are_scored_in_float32() -> None:
    values = logits().to(torch.bfloat16)
    logprobs, _ = token_stats(values, IDS, MASK, lambda x: x, 1.0)
    expected = torch.log_softmax(values.double(), -1).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs[MASK].double(), expected[MASK], rtol=1e-6, atol=1e-6)


def test_statistics_without_gradient_have_none() -> None:
    values = logits().requires_grad_()
    _, statistics = token_stats(values, IDS, MASK, lambda x: x, 1.0, [Entropy(), ProxyLogprob(Filter(0.1, "relative"))])
    assert not any(statistic.requires_grad for statistic in statistics.values())


def test_of_two_equal_names_the_differentiable_one_serves_both() -> None:
    assert merge_statistics([Entropy(), Entropy(differentiable=True), Entropy()]) == (Entropy(differentiable=True),)


def test_proxies_of_two_filters_are_two_statistics() -> None:
    filters = (Filter(0.1, "relative"), Filter(0.1, "absolute"), Filter(0.2, "relative"), Filter(0.1, "relative"))
    assert len(merge_statistics([ProxyLogprob(keep) for keep in filters])) == 3
