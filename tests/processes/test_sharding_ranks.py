"""FSDP2 over real gloo ranks is one process: weights, gradients, adapters, and each setting does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sharded import ADAPTED, CPU, adapted, alone, batch, distance, gradients, source, spawned, weights
from sharding_checks import TWO, hybrid, learning

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.training.optim import gradient_norm
from rlvr_lightning.training.sharding import ShardSettings, reduces_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawned(2, 1, TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return spawned(1, 1, (learning,), tmp_path_factory.mktemp("one"))[0]["learning"]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawned(4, 2, (hybrid,), tmp_path_factory.mktemp("four"))


def test_each_rank_keeps_its_half_of_the_files_weights(two: list[dict[str, Any]]) -> None:
    policy = Policy(source())
    expected = weights(policy)
    for found in (rank["loading"] for rank in two):
        for kind in ("weights", "reference"):
            assert found[kind].keys() == expected.keys()
            assert all(torch.equal(found[kind][name], weight) for name, weight in expected.items())
        assert found["share"] == pytest.approx(0.5, abs=0.01)
        assert found["fingerprint"] == found["adapted_fingerprint"] == policy.fingerprint


def test_two_ranks_in_half_precision_learn_as_one(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    alone_in_half, exact = one["bfloat16"], gradients(alone()[0])
    for found in (rank["learning"]["bfloat16"] for rank in two):
        assert float(found["loss"]) == pytest.approx(float(alone_in_half["loss"]), rel=1e-2)
        assert distance(found["gradients"], alone_in_half["gradients"]) < 1e-2
        assert float(found["norm"]) == pytest.approx(float(alone_in_half["norm"]), rel=1e-2)
        # It is half precision, and of the right size.
        assert 1e-3 < distance(found["gradients"], exact) < 0.1


@pytest.mark.parametrize("precision", ["float32", "offloaded"])
def test_two_ranks_learn_as_one(precision: str, two: list[dict[str, Any]]) -> None:
    bound = 1e-6
    policy, loss = alone()
    expected = gradients(policy)
    norm = float(gradient_norm(list(policy.parameters())))
    for found in (rank["learning"][precision] for rank in two):
        assert float(found["loss"]) == pytest.approx(float(loss), rel=bound)
        assert distance(found["gradients"], expected) < bound
        assert float(found["norm"]) == pytest.approx(norm, rel=bound)
        assert float(found["clipped"]) == pytest.approx(0.5 * norm, rel=bound)
        assert not torch.isfinite(found["broken"])
        assert found["offloads"] == (precision == "offloaded")


def test_a_rank_without_rows_for_a_micro_batch_is_waited_for(two: list[dict[str, Any]]) -> None:
    _, loss = alone()
    for found in (rank["waiting"] for rank in two):
        assert found["plans"] == 2
        assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-6)


def test_numbers_of_the_old_policy_stay_float32(two: list[dict[str, Any]]) -> None:
    assert [rank["casting"]["same"] for rank in two] == [True, True]


def test_layers_are_recomputed_under_sharding(two: list[dict[str, Any]]) -> None:
    expected = gradients(alone()[0])
    for found in (rank["recomputing"] for rank in two):
        assert found["runs"] == [2, 1, 2, 1]
        assert distance(found["gradients"], expected) < 1e-6


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_are_those_of_one_process(kind: str, two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    torch.manual_seed(5)
    fresh = Policy(adapted(kind))
    begun = {name: p.detach() for name, p in fresh.named_parameters() if p.requires_grad}
    policy, _ = alone(adapted(kind), moved=True)
    expected, merged = gradients(policy), weights(policy)
    with policy.adapters_off(), torch.no_grad():
        off = policy(batch(slice(0, 4)), 1.0)[0]
    for found in [rank["adapters"][kind] for rank in two] + [rank["hybrid"]["adapted"][kind] for rank in four]:
        assert found["begun"].keys() == begun.keys()
        # A norm over a row may be rounded another way.
        assert all((found["begun"][name] - value).abs().max() < 1e-6 for name, value in begun.items())
        assert distance(found["gradients"], expected) < 2e-6
        assert all((found["merged"][name] - weight).abs().max() < 1e-5 for name, weight in merged.items())
        torch.testing.assert_close(found["off"], off, rtol=0, atol=1e-5)


def test_gradients_meet_once_a_step_or_after_each_micro_batch(two: list[dict[str, Any]]) -> None:
    expected = gradients(alone()[0])
    groups = 5  # four layers and the root
    for found in (rank["meeting"] for rank in two):
        assert {when: found[when]["calls"] for when in found} == {
            "step": groups,
            "micro_batch": 3 * groups,
            "auto": groups,
        }
        assert all(distance(found[when]["gradients"], expected) < 1e-6 for when in found)


def test_layers_stay_gathered_only_where_they_may(two: list[dict[str, Any]]) -> None:
    for found in (rank["resharding"] for rank in two):
        assert found[True] == {"gathered": False, "same": True}
        assert found[False] == {"gathered": True, "same": True}


def test_two_nodes_of_two_ranks_hold_the_whole_each(four: list[dict[str, Any]]) -> None:
    policy, loss = alone()
    expected, kept = gradients(policy), weights(policy)
    for found in (rank["hybrid"] for rank in four):
        assert found["placements"] == "(Replicate(), Shard(dim=0))"
        assert found["share"] == pytest.approx(0.5, abs=0.01)
        assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-6)
        assert float(found["norm"]) == pytest.approx(float(gradient_norm(list(policy.parameters()))), rel=1e-6)
        assert distance(found["gradients"], expected) < 1e-6
        assert all(torch.equal(found["weights"][name], weight) for name, weight in kept.items())
        # Inside a node after each micro-batch, across nodes once a step (and the sum of the loss).
        assert found["calls"] == (15, 5 + 1)


def test_auto_reduces_once_where_the_gradient_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(source())
    size = 4 * sum(parameter.numel() for parameter in policy.parameters())
    for memory, once in ((8 * size, True), (8 * size - 8, False)):
        monkeypatch.setattr("rlvr_lightning.training.sharding.memory_of", lambda device, memory=memory: memory)
        assert reduces_once(policy, ShardSettings(), CPU) == once
        assert reduces_once(policy, ShardSettings(reduce_gradients="step"), CPU)
        assert not reduces_once(policy, ShardSettings(reduce_gradients="micro_batch"), CPU)
