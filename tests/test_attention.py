"""Attention backends: packed rows are kept apart, no mask of L x L is kept, and what cannot be kept apart is found out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from training import SMALL, fit

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.models.attention import BY_RESPONSE, Plan, resolved, set_attention
from rlvr_lightning.models.packing import Packing
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource, bundled_model
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.rollout.isolation import leak
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
    groups = Plan(Packing((900, 900, 899, 400, 390, 321, 320, 319, 5)), None, device).groups
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


def sums_over_all_that_came_before(tmp_path: Path) -> ModelSource:
    """A Llama whose attention is the mean of all values up to a token, whatever mask or positions it is given."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, LlamaForCausalLM

    class DeafConfig(LlamaConfig):  # type: ignore[misc]
        model_type = "deaf_llama"

    class DeafAttention(LlamaAttention):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **ignored: Any) -> tuple[Tensor, None]:
            shape = (*hidden_states.shape[:2], -1, self.head_dim)
            values = self.v_proj(hidden_states).view(shape).repeat_interleave(self.num_key_value_groups, 2).flatten(2)
            counts = torch.arange(1, shape[1] + 1).view(1, -1, 1)
            return self.o_proj(values.cumsum(1) / counts), None

    class DeafForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
        config_class = DeafConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for index, layer in enumerate(self.model.layers):
                layer.self_attn = DeafAttention(config, index)
            self.post_init()

    source = folder(tmp_path, "llama")
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"model_type": "deaf_llama"}))
    AutoConfig.register("deaf_llama", DeafConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeafConfig, DeafForCausalLM, exist_ok=True)
    return source


def test_a_model_that_ignores_packing_is_found_out(tmp_path: Path) -> None:
    def score(source: ModelSource) -> Any:
        scorer = Scorer(Policy(source), None, Objective(SinglePart(), ClipKL(), {}, TokenMean()), 1.0)
        return lambda micro: scorer.score(micro, torch.device("cpu"), on_policy=False)

    for name, (kind, settings) in MODELS.items():
        assert leak(score(folder(tmp_path / name, kind, **settings)), 20) < 1e-4
    assert leak(score(ModelSource()), 19) < 1e-4
    assert leak(score(sums_over_all_that_came_before(tmp_path / "deaf")), 20) > 0.9


def test_a_run_pads_where_packing_would_leak_and_refuses_to_be_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = sums_over_all_that_came_before(tmp_path / "model")
    settings = (f"model.path={source.path}", "trainer.max_epochs=1", "rollout.prompts_per_epoch=2")
    # Drawn with a cache, it is another policy than scored without one, as any model is whose attention does that.
    settings += ("rollout.canary_tolerance=100",)
    with caplog.at_level(logging.WARNING):
        assert layouts(tmp_path / "auto", *settings) == {False}
    (said,) = [record.getMessage() for record in caplog.records if "packed" in record.getMessage()]
    assert said.startswith(f"with model.path={source.path}, packed responses see each other (100%")
    assert "they are padded instead" in said
    with pytest.raises(ConfigError, match=r"packed responses see each other .*: set rollout.packing=false"):
        fit(tmp_path / "true", *settings, "rollout.packing=true")


def layouts(tmp_path: Path, *settings: str) -> set[bool]:
    """Whether the micro-batches of a run are packed."""
    run = build_run(compose([*SMALL, *settings, "trainer.max_epochs=1", f"output_dir={tmp_path}"]))
    seen = set()
    step = run.module.training_step

    def recording(batch: Any, batch_idx: int) -> Tensor:
        seen.update(micro.segments is not None for micro in batch.micros)
        return step(batch, batch_idx)

    run.module.training_step = recording  # type: ignore[method-assign]
    run.fit()
    return seen


def test_packing_and_attention_settings_are_obeyed(tmp_path: Path) -> None:
    assert layouts(tmp_path / "1") == {True}
    assert layouts(tmp_path / "2", "rollout.packing=false") == {False}
    assert layouts(tmp_path / "3", "model.attention=eager") == {False}
    # An explicit mask keeps them apart too, at its price.
    assert layouts(tmp_path / "4", "model.attention=eager", "rollout.packing=true") == {True}


@pytest.mark.parametrize("checkpointing", ["full", 2])
def test_recomputed_layers_find_the_lengths_of_the_packed_row_again(checkpointing: Any, tmp_path: Path) -> None:
    kind, settings = MODELS["mistral, window of 8"]
    source, held = folder(tmp_path, kind, **settings), rows()
    batch, other = collate(held, 0, packed=True), collate(held[::-1], 0, packed=True)
    plain = pass_of(Policy(source), [batch])
    policy = Policy(ModelSource(source.path, gradient_checkpointing=checkpointing))
    first = policy(batch, 1.0)[0]
    # Another pass comes between a forward pass and its backward pass.
    with torch.no_grad():
        policy(other, 1.0)
    (first * batch.advantages).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, plain[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # compiles a kernel
def test_flex_attention_keeps_packed_responses_apart_by_blocks(tmp_path: Path) -> None:
    # Without a gradient: flex attention has no backward pass on a CPU.
    source, held = folder(tmp_path, "llama"), rows((300, 200, 140, 128))
    flex = Policy(source)
    set_attention(flex.causal_lm, "flex_attention")
    batch = collate(held, 0, packed=True)
    made: list[Any] = []
    layer = flex.causal_lm.get_decoder().layers[0].self_attn
    layer.register_forward_pre_hook(lambda _, args, kwargs: made.append(kwargs["attention_mask"]), with_kwargs=True)
    with torch.no_grad():
        found, _ = flex(batch, 1.0)
        expected, _ = Policy(source)(batch, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # What stands for the mask is as large as the number of blocks' pairs, not of tokens'.
    (mask,) = made
    tensors = [value for value in vars(mask).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() for tensor in tensors) < 768**2 / 1000
