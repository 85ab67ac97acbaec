"""Sums tell which weights have not arrived, and take rounding for nothing else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rlvr_lightning.rollout.weight_sums import PolicyWeights, Summed, compare


def sums(weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Summed]:
    policy = SimpleNamespace(full_weights=lambda: iter(weights.items()))
    read = PolicyWeights(cast(Any, SimpleNamespace(policy=policy)), dtype)
    assert [name for name, _ in read] == list(weights)
    return read.sums


def worker(held: dict[str, float], computed: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"sums": held, "computed": list(computed), "packed": {"qk": ["q", "k"]}}


def test_a_sum_near_zero_may_be_rounded_as_its_numbers_are() -> None:
    # Of numbers that cancel: in float32, one after another, their sum is off by more than 1e-5, and by less than is allowed.
    weight = torch.randn(192, 384, generator=torch.Generator().manual_seed(0)) * 0.1
    weight -= weight.mean()
    expected = sums({"w": weight})
    total = float(weight.double().sum())
    assert math.isclose(expected["w"].total, total, abs_tol=1e-12)
    assert math.isclose(expected["w"].rounding, 2**-24 * math.sqrt(384) * float(weight.double().norm()), rel_tol=1e-6)
    row = torch.zeros(192)
    for column in weight.t():
        row += column
    rounded = float(row.double().sum())
    assert 0 < abs(rounded - total) < 4 * expected["w"].rounding
    assert compare(expected, [worker({"w": total + 2e-5}, ("w",))]).differ == ()
    # Looked at itself, the weight is another one; and a step of Adam at a rate of 1e-6 moves even a computed sum.
    assert compare(expected, [worker({"w": total + 2e-5})]).differ == ("w",)
    moved = float((weight + 1e-6 * weight.sign()).double().sum() + 1e-6 * math.sqrt(weight.numel()))
    assert compare(expected, [worker({"w": moved}, ("w",))]).differ == ("w",)


def test_weights_made_one_are_compared_as_one_and_shares_add_up() -> None:
    weights = {"a.q.weight": torch.ones(2, 3), "a.k.weight": torch.ones(1, 3), "hidden": torch.ones(2)}
    expected = sums(weights)
    assert (expected["a.q.weight"] + expected["a.k.weight"]).rounding == pytest.approx(2**-24 * math.sqrt(3) * 3)
    for workers in ([worker({"a.qk.weight": 9.0})], [worker({"a.qk.weight": 4.0}), worker({"a.qk.weight": 5.0})]):
        found = compare(expected, workers)
        assert (found.differ, found.same, found.hidden) == ((), 1, 1)
    assert compare(expected, [worker({"a.qk.weight": 8.0, "hidden": 2.0})]).differ == ("a.qk.weight",)


def test_in_half_precision_a_computed_sum_is_rounded_more() -> None:
    weights = {"w": torch.randn(8, 16, generator=torch.Generator().manual_seed(1))}
    exact, half = sums(weights)["w"], sums(weights, torch.bfloat16)["w"]
    assert half.rounding == pytest.approx(exact.rounding * 2**16, rel=1e-2)
    assert half.total == float(weights["w"].bfloat16().double().sum())
