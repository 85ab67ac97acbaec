"""Accuracies against counting, token means against averaging."""

from __future__ import annotations

import doctest
from itertools import combinations
from types import ModuleType

import pytest
import torch

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.evaluation.metrics import (
    AvgAtK,
    PassAtK,
    TokenMeanMetric,
    TokenMeans,
    at_k,
    histogram,
    pass_at_k,
    quadrants,
    token_counts,
    token_means,
)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(k: int) -> None:
    n = 5
    for c in range(n + 1):
        right = [index < c for index in range(n)]
        draws = list(combinations(right, k))
        expected = sum(any(draw) for draw in draws) / len(draws)
        assert float(pass_at_k(torch.tensor([c]), n, k)) == pytest.approx(expected, abs=1e-12)


def test_metrics_over_several_updates() -> None:
    average, passing = AvgAtK(4), PassAtK(2)
    for rows in ([[1, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]):
        correct = torch.tensor(rows, dtype=torch.bool)
        average.update(correct)
        passing.update(correct)
    assert float(average.compute()) == pytest.approx((0.25 + 1 + 0) / 3)
    assert float(passing.compute()) == pytest.approx((0.5 + 1 + 0) / 3)


def test_too_few_responses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PassAtK\(k=4\) needs 4 responses; got 2"):
        PassAtK(4).update(torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match="AvgAtK.k must be at least 1; got 0"):
        AvgAtK(0)


def test_token_mean_weighs_tokens_not_batches() -> None:
    metric = TokenMeanMetric()
    metric.update(torch.tensor([[1.0, torch.inf]]), torch.tensor([[True, False]]))
    metric.update(torch.tensor([[4.0, 4.0, 4.0]]), torch.tensor([[True, True, True]]))
    assert float(metric.compute()) == pytest.approx(13 / 4)


def test_drained_means_start_anew_and_leave_out_what_saw_nothing() -> None:
    means = TokenMeans(["policy/entropy/a.b", "policy/kl"])
    means.add("policy/entropy/a.b", torch.tensor([[2.0, 4.0]]), torch.tensor([[True, True]]))
    assert means.drain() == {"policy/entropy/a.b": 3.0}
    assert means.drain() == {}


@pytest.mark.parametrize("module", [at_k, histogram, quadrants, token_counts, token_means], ids=lambda m: m.__name__)
def test_the_examples_in_the_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
