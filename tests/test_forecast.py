"""The forecast against what it speaks of: tensors kept for the backward pass, optimizer state, caches, operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr_lightning.models.attention import set_attention
from rlvr_lightning.models.packing import Packing, packed_as
from rlvr_lightning.models.shapes import ModelShape, packaged
from rlvr_lightning.training.forecast import activations, host, sampling, states
from rlvr_lightning.training.forecast.forecast import forecast
from rlvr_lightning.training.forecast.remedies import remedies
from rlvr_lightning.training.forecast.setup import GIB, EngineSetup, RolloutSetup, Setup
from rlvr_lightning.training.forecast.work import forward_flops, work

TINY = {
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "tie_word_embeddings": False,
}
TOKENS = 64


def setup(shape: ModelShape, **changed: Any) -> Setup:
    whole: dict[str, Any] = {
        "shape": shape,
        "accelerator": "gpu",
        "device_memory": 80.0 * GIB,
        "host_memory": None,
        "devices": 1,
        "num_nodes": 1,
        "strategy": "single",
        "shard_over": "all",
        "reshard": True,
        "reduce": "micro_batch",
        "gradient_room": 0.0,
        "cpu_offload": False,
        "half": False,
        "recompute": 0,
        "attention": "sdpa",
        "packed": False,
        "micro_batch_tokens": 16384,
        "optimizer": "adamw",
        "adapter_rank": None,
        "adapter_targets": "all-linear",
        "reference": False,
        "statistics": 0,
        "kept_passes": 0,
        "saves_within": False,
        "engine": EngineSetup("vllm", 2, share=0.4),
        "rollout": RolloutSetup(32, 32, 1, 8, 1, 16, 48, 10),
    }
    return Setup(**{**whole, **changed})


def kept_bytes(model: torch.nn.Module, *, autocast: bool = False, packed: bool = False) -> int:
    """Of distinct storages autograd keeps in a forward pass of the decoder, weights and their casts left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and tuple(tensor.shape) not in shapes:
            held[place] = tensor
        return tensor

    ids = torch.randint(0, TINY["vocab_size"], (1, TOKENS))
    with (
        packed_as(Packing([TOKENS // 2] * 2 if packed else None)),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model.get_decoder()(input_ids=ids, position_ids=torch.arange(TOKENS)[None], use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("how", ["float32", "packed", "autocast", "fsdp", "lora"])
def test_activations_of_a_layer_are_what_autograd_keeps(kind: str, how: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = []
    for layers in (1, 3):
        config = {**TINY, "model_type": kind, "num_hidden_layers": layers}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
        set_attention(model, "sdpa")
        if how == "lora":
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
            model = model.get_base_model()
            model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
        model = model.bfloat16() if how == "fsdp" else model
        sizes.append(kept_bytes(model, autocast=how == "autocast", packed=how == "packed"))
    measured = (sizes[1] - sizes[0]) / 2 / TOKENS
    planned = setup(
        ModelShape.of({**TINY, "model_type": kind}, kind),
        accelerator="cpu",
        packed=how == "packed",
        half=how in ("autocast", "fsdp"),
        strategy="fsdp" if how == "fsdp" else "single",
        adapter_rank=4 if how == "lora" else None,
    )
    assert activations.layer_activations(planned) == pytest.approx(measured, rel=0.01)


def built(kind: str = "llama", **changed: Any) -> tuple[torch.nn.Module, ModelShape]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {**TINY, "model_type": kind, **changed}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval(), ModelShape.of(config, kind)


def test_a_recomputed_layer_keeps_its_input_alone() -> None:
    from rlvr_lightning.models.recompute import recompute

    for every, again in ((1, 3), (2, 2), (3, 1)):
        model, shape = built()
        plain = kept_bytes(model)
        recompute(model.get_decoder().layers, every)
        saved = plain - kept_bytes(model)
        one = setup(
            shape, accelerator="cpu", micro_batch_tokens=TOKENS, rollout=RolloutSetup(8, 8, 1, 8, 1, 16, 48, 10)
        )
        forecast_saved = activations.kept(one) - activations.kept(replace(one, recompute=every))
        # Inputs of layers are states other layers keep as well; norms keep two small numbers a token.
        assert forecast_saved == pytest.approx(saved, rel=0.05), (every, again)


def test_state_is_what_torch_allocates() -> None:
    model, shape = built()
    planned = setup(shape)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    of_parameters = sum(parameter.nbytes for parameter in model.parameters())
    moments = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.dim())
    assert states.weights(planned) == states.gradients(planned) == of_parameters
    assert states.optimizer_state(planned) == moments


@pytest.mark.parametrize(
    ("changed", "weights", "gradients"),
    [
        ({"devices": 2, "strategy": "ddp"}, 1, 2),
        ({"devices": 4, "strategy": "fsdp"}, 1 / 4, 1 / 4),
        ({"devices": 4, "num_nodes": 2, "strategy": "fsdp"}, 1 / 8, 1 / 8),
        ({"devices": 4, "num_nodes": 2, "strategy": "fsdp", "shard_over": "node"}, 1 / 4, 1 / 4),
        ({"devices": 4, "strategy": "fsdp", "reduce": "step", "micro_batch_tokens": 64}, 1 / 4, 5 / 4),
    ],
)
def test_state_of_a_rank(changed: dict[str, Any], weights: float, gradients: float) -> None:
    _, shape = built()
    planned = setup(shape, **changed)
    assert states.weights(planned) == pytest.approx(4 * shape.parameters * weights)
    assert states.gradients(planned) == pytest.approx(4 * shape.parameters * gradients)
    assert states.reference(replace(planned, reference=True)) == states.weights(planned)


def test_the_cache_is_what_transformers_keeps() -> None:
    model, shape = built()
    ids = torch.zeros(5, TOKENS, dtype=torch.long)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    planned = setup(shape, engine=EngineSetup("transformers", 4))
    assert planned.rollout.length == TOKENS
    assert sampling.cache(planned, 5) == held


def test_operations_are_those_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, shape = built()
    model.set_attn_implementation("eager")  # plain products, which torch counts
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long))
    planned = setup(shape)
    # torch counts attention without its causal mask: twice what is done.
    unmasked = TOKENS * 4 * shape.query_size * TOKENS / 2 * shape.layers
    assert TOKENS * forward_flops(planned) + unmasked == pytest.approx(counter.get_total_flops(), rel=0.01)
    whole = work(replace(planned, recompute=1, kept_passes=2))
    responses = 32 * 8
    assert whole.step_tokens == responses * TOKENS
    assert whole.update == pytest.approx(4 * forward_flops(planned) * responses * TOKENS)
    assert whole.scoring == pytest.approx(2 * forward_flops(planned) * responses * TOKENS)


def test_a_micro_batch_is_no_larger_than_the_step_and_no_smaller_than_a_response() -> None:
    _, shape = built()
    assert setup(shape).micro_tokens == 256 * 64
    assert setup(shape, micro_batch_tokens=1000).micro_tokens == 1000
    assert setup(shape, micro_batch_tokens=1).micro_tokens == 64
    assert setup(shape, micro_batch_tokens=10**9, devices=4, strategy="ddp").micro_tokens == 64 * 64
    assert setup(shape, micro_batch_tokens=1000).micro_batches == 18


def large(**changed: Any) -> Setup:
    """Archer's size on one GPU of 80 GiB, all weights trained, nothing saved."""
    shape = ModelShape.of(packaged()["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"], "1.5B")
    rollout = RolloutSetup(64, 32, 3, 16, 1, 2048, 32768, 200)
    return setup(shape, half=True, rollout=rollout, micro_batch_tokens=65536, statistics=1, reference=True, **changed)


def test_remedies_make_it_fit_and_are_the_fewest() -> None:
    planned = forecast(large())
    assert not planned.fits
    assert planned.certainly_too_large
    found = remedies(planned.setup)
    assert len(found) == 3
    assert [len(remedy.overrides) for remedy in found] == sorted(len(remedy.overrides) for remedy in found)
    for remedy in found:
        assert remedy.forecast.fits
        assert remedy.forecast.device_total < planned.device_total
    assert any("model.gradient_checkpointing=full" in remedy.overrides for remedy in found)


def test_each_setting_moves_what_it_is_for() -> None:
    base = forecast(large(devices=8, strategy="fsdp", recompute=1))
    for changed, smaller in (
        ({"recompute": 0}, False),
        ({"micro_batch_tokens": 131072}, False),
        ({"reduce": "auto", "gradient_room": 10.0 * GIB}, False),
        ({"reshard": False}, False),
        ({"attention": "eager"}, False),
        ({"reference": False}, True),
        ({"cpu_offload": True}, True),
        ({"num_nodes": 2}, True),
        ({"adapter_rank": 16}, True),
        ({"engine": EngineSetup("vllm", 2, share=0.2)}, True),
        ({"half": False}, False),
    ):
        other = forecast(replace(base.setup, **changed))
        assert (other.device_total < base.device_total) == smaller, changed
        assert other.device_total != base.device_total, changed
    assert host.offloaded(replace(base.setup, cpu_offload=True)) == pytest.approx(
        8 * (16 + 4) * base.setup.shape.parameters / 8
    )


def test_too_small_a_share_for_the_engine_is_found_out() -> None:
    planned = forecast(large(recompute=1, engine=EngineSetup("vllm", 2, share=0.05)))
    assert [short.place for short in planned.shortages] == ["vLLM's share of each GPU"]
    (first, *_) = remedies(planned.setup)
    assert first.overrides == ("engine.gpu_memory_utilization=0.1",)
