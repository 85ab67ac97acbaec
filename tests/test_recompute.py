"""Layers are recomputed in eval mode, keep what they must and no more, and give the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.recompute import every_nth
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.types import TokenBatch

ROWS, LENGTH = 8, 64


def batch() -> TokenBatch:
    ids = torch.randint(2, 19, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    shape = (ROWS, LENGTH - 1)
    zeros = torch.zeros(shape)
    return TokenBatch(
        input_ids=ids,
        loss_mask=torch.ones(shape, dtype=torch.bool),
        advantages=zeros,
        rollout_logprobs=zeros,
        noise=zeros,
    )


class Seen:
    """How often each decoder layer's attention ran, and what autograd kept [bytes]."""

    def __init__(self, policy: Policy) -> None:
        self.runs = [0] * len(policy.causal_lm.get_decoder().layers)
        self.kept = 0
        self._pointers: set[int] = set()
        for index, layer in enumerate(policy.causal_lm.get_decoder().layers):
            layer.self_attn.register_forward_hook(self._count(index))
        self._own = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def _count(self, index: int) -> Any:
        def hook(*_: Any) -> None:
            self.runs[index] += 1

        return hook

    def pack(self, tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._pointers | self._own:
            self._pointers.add(pointer)
            self.kept += tensor.untyped_storage().nbytes()
        return tensor


def gradients(policy: Policy) -> tuple[Seen, dict[str, Tensor]]:
    seen = Seen(policy)
    with torch.autograd.graph.saved_tensors_hooks(seen.pack, lambda tensor: tensor):
        logprobs, _ = policy(batch(), 1.0)
    assert seen.runs == [1] * 4
    logprobs.square().sum().backward()
    return seen, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def plain() -> tuple[Seen, dict[str, Tensor]]:
    return gradients(Policy(ModelSource()))


@pytest.mark.parametrize(
    ("setting", "runs"),
    [
        ("full", [2, 2, 2, 2]),
        (True, [2, 2, 2, 2]),
        (2, [2, 1, 2, 1]),
        (3, [2, 1, 1, 2]),
        ("none", [1] * 4),
        (False, [1] * 4),
    ],
)
def test_every_nth_layer_runs_again_and_the_gradient_is_the_same(
    setting: Any, runs: list[int], plain: tuple[Seen, dict[str, Tensor]]
) -> None:
    policy = Policy(ModelSource(gradient_checkpointing=setting))
    assert not policy.model.training
    seen, found = gradients(policy)
    assert seen.runs == runs
    before, expected = plain
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    recomputed = sum(count - 1 for count in runs)
    # A layer keeps its input alone: most of what four layers keep is gone in proportion.
    layers = before.kept - gradients_without_layers()
    assert seen.kept <= before.kept - 0.85 * layers * recomputed / 4
    if not recomputed:
        assert seen.kept == before.kept


def gradients_without_layers() -> int:
    """What the output layer alone keeps [bytes]: the hidden states, and a chunk's log-probabilities."""
    policy = Policy(ModelSource())
    policy.causal_lm.get_decoder().layers = torch.nn.ModuleList()
    seen = Seen(policy)
    with torch.autograd.graph.saved_tensors_hooks(seen.pack, lambda tensor: tensor):
        policy(batch(), 1.0)
    return seen.kept


def test_adapters_are_recomputed_too() -> None:
    from peft import LoraConfig

    def made(setting: str) -> Policy:
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        return Policy(ModelSource(lora=lora, gradient_checkpointing=setting))

    (_, expected), (seen, found) = gradients(made("none")), gradients(made("full"))
    assert seen.runs == [2] * 4
    assert expected
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_autocast_is_the_same_when_a_layer_runs_again() -> None:
    def made(setting: str) -> dict[str, Tensor]:
        policy = Policy(ModelSource(gradient_checkpointing=setting))
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, _ = policy(batch(), 1.0)
        logprobs.square().sum().backward()
        return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}

    expected, found = made("none"), made("full")
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_names_stay_and_the_reference_is_left_alone() -> None:
    plain, recomputed = Policy(ModelSource()), Policy(ModelSource(gradient_checkpointing="full"))
    assert [name for name, _ in recomputed.named_modules()] == [name for name, _ in plain.named_modules()]
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    reference = Policy(ModelSource(gradient_checkpointing="full"), trainable=False)
    assert all("forward" not in vars(layer) for layer in reference.causal_lm.get_decoder().layers)


@pytest.mark.parametrize("wrong", ["some", 0, -1, 1.5, None])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="model.gradient_checkpointing must be none, full, or n"):
        every_nth(wrong)
