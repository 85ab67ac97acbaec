"""Attention backends: packed rows are kept apart, no mask of L x L is kept, and what cannot be kept apart is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.attention import BY_RESPONSE, Plan, resolved, set_attention
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource, bundled_model
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.types import Row, TokenBatch

# Longest first, as the layout brings them: three neighbours nearly alike, two of one length, one alone.
LENGTHS = (40, 37, 33, 20, 20, 7)


def rows(lengths: tuple[int, ...] = LENGTHS, vocabulary: int = 17) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, length in enumerate(lengths):
        ids = torch.randint(3, vocabulary, (length,), generator=generator)
        mask = torch.arange(length - 1) >= 2
        values = torch.randn(length - 1, generator=generator)
        made.append(Row(index, 0, ids, mask, values * mask, -values.abs(), values.abs() / 9))
    return made


def folder(tmp_path: Path, kind: str, **settings: Any) -> ModelSource:
    """A model folder of random weights, with the bundled tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(
        kind,
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **settings,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(tmp_path)
    return ModelSource(str(tmp_path))


def pass_of(policy: Policy, batches: list[TokenBatch]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the weighted tokens and the gradient of their sum, weighed by the advantages."""
    policy.zero_grad()
    found = []
    for batch in batches:
        logprobs, _ = policy(batch, 1.0)
        (logprobs * batch.advantages).sum().backward()
        found.append(logprobs.detach()[batch.loss_mask])
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return torch.cat(found), gradient


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral, window of 8": ("mistral", {"sliding_window": 8}),
    "mistral, window of 38": ("mistral", {"sliding_window": 38}),
    "qwen2, half of the layers in windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_packed_padded_and_alone_are_what_an_explicit_mask_gives(name: str, tmp_path: Path) -> None:
    kind, settings = MODELS[name]
    source, held = folder(tmp_path, kind, **settings), rows()
    explicit, ours = Policy(ModelSource(source.path, attention="eager")), Policy(source)
    assert (explicit.attention, ours.attention) == ("eager", BY_RESPONSE)
    expected = pass_of(explicit, [collate([row], 0, packed=False) for row in held])
    assert expected[1].abs().max() > 0.1
    ways = {
        "alone": [collate([row], 0, packed=False) for row in held],
        "padded": [collate(held, 0, packed=False)],
        "packed": [collate(held, 0, packed=True)],
        "packed, cut": [collate(held[:2], 0, packed=True), collate(held[2:], 0, packed=True)],
    }
    for way, batches in ways.items():
        for found, there in zip(pass_of(ours, batches), expected, strict=True):
            torch.testing.assert_close(found, there, rtol=1e-3, atol=1e-4, msg=lambda text, way=way: f"{way}: {text}")
    # The window is not so wide that it does nothing.
    if settings:
        plain = Policy(folder(tmp_path / "plain", kind, **settings | {"sliding_window": 512}))
        assert (pass_of(plain, ways["padded"])[0] - expected[0]).abs().max() > 1e-2


def kept(policy: Policy, batch: TokenBatch) -> list[tuple[int, ...]]:
    """Shapes of what is kept for the backward pass."""
    shapes: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs, _ = policy(batch, 1.0)
    logprobs.sum().backward()
    return shapes


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("packed", [False, True])
def test_no_square_of_the_length_is_kept_for_the_backward_pass(name: str, packed: bool, tmp_path: Path) -> None:
    kind, settings = MODELS[name]
    source, held = folder(tmp_path, kind, **settings), rows((160, 150, 130) if packed else (160, 150))
    batch = collate(held, 0, packed=packed)
    longest = 160

    def squares(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [shape for shape in shapes if sum(size >= longest for size in shape[-2:]) == 2]

    eager = kept(Policy(ModelSource(source.path, attention="eager")), batch)
    ours = kept(Policy(source), batch)
    assert squares(eager)
    assert not squares(ours)
    # Nothing grows with the square: twice the length is twice as much, but for windows' bands and what each pass has once.
    long = kept(Policy(source), collate(rows(tuple(2 * len(row) for row in held)), 0, packed=packed))

    def numbers(shapes: list[tuple[int, ...]]) -> int:
        return sum(torch.Size(shape).numel() for shape in shapes)

    assert numbers(long) < 2.1 * numbers(ours)
    assert numbers(eager) > 1.5 * numbers(ours)


def test_neighbours_of_nearly_one_length_are_computed_at_once() -> None:
    device = torch.device("cpu")
    groups = Plan((900, 900, 899, 400, 390, 321, 320, 319, 5), None, device).groups
    assert [(group.start, group.lengths) for group in groups] == [
        (0, (900, 900)),
        (1800, (899,)),
        (2699, (400, 390, 321, 320)),
        (4130, (319,)),
        (4449, (5,)),
    ]


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    assert resolved("auto", "32-true", "cpu") == "auto"
    assert resolved("eager", "32-true", "cpu") == "eager"
    with pytest.raises(ConfigError, match="model.attention must be one of auto, sdpa, .*; got 'flash'"):
        resolved("flash", "32-true", "cpu")
    with pytest.raises(ConfigError, match="flash_attention_2 computes in half precision alone: set trainer.precision"):
        resolved("flash_attention_2", "32-true", "cpu")
    for backend in ("flash_attention_2", "flash_attention_3", "flex_attention"):
        with pytest.raises(ConfigError, match=f"{backend} trains on a GPU alone"):
            resolved(backend, "bf16-mixed", "cpu")
    model = folder(tmp_path, "llama").load()
    with pytest.raises(ConfigError, match="model.attention=flash_attention_2: .*seem to be installed"):
        set_attention(model, "flash_attention_2")
