"""Every formula of the forecast against numbers worked out by hand for one small model.

h = 96, i = 200, 3 layers, 6 heads and 2 for keys of 16, so q = 96 and k = 32; V = 300, embeddings and output layer apart.
A layer has 96 (96 + 32 + 32 + 96) + 3 x 96 x 200 = 82,176 weights in its linears and 192 in its norms: 82,368; outside the
layers there are 2 x 28,800 + 96 = 57,696: P = 304,800. LoRA of rank 4: 4 (192 + 128 + 128 + 192 + 3 x 296) = 6,112 a layer,
18,336 in all. 32 prompts of 8 responses of 16 + 48 tokens are one optimizer step of 16,384 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_forecast import TINY, setup

from rlvr_lightning.models.shapes import ModelShape
from rlvr_lightning.training.forecast import activations, forecast, host, sampling, states
from rlvr_lightning.training.forecast.remedies import _knobs
from rlvr_lightning.training.forecast.setup import GIB, EngineSetup, RolloutSetup, Setup
from rlvr_lightning.training.forecast.work import forward_flops, work

SHAPE = ModelShape.of({**TINY, "model_type": "llama"}, "llama")
NORMED = ModelShape.of({**TINY, "model_type": "qwen3"}, "qwen3")
ODD = ModelShape.of(
    {**TINY, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 25, "model_type": "llama"}, "odd"
)
PARAMETERS, TOKENS = 304_800, 16_384
CPU, LORA = {"accelerator": "cpu"}, {"adapter_rank": 4}
FSDP = {"strategy": "fsdp", "devices": 4}
LONG = RolloutSetup(1024, 1024, 1, 8, 1, 16, 48, 10)
HALF = {"half": True}
BY_HAND: list[tuple[Callable[[Setup], float], dict[str, Any], float]] = [
    (activations.layer_activations, CPU, 1536 + 768 + (4 * 256 + 24) + 3200 + 8),
    (activations.layer_activations, {}, 1536 + 768 + (4 * 384 + 24) + 3200 + 8),
    (activations.layer_activations, HALF, 1536 + 960 + (2 * 256 + 24) + 1600 + 8),
    (activations.layer_activations, HALF | FSDP, 1152 + 384 + (2 * 256 + 24) + 1600 + 8),
    (activations.layer_activations, CPU | {"packed": True}, 6560 + 384),
    (activations.layer_activations, CPU | {"packed": True, "attention": "auto"}, 6560 + 384),
    (activations.layer_activations, CPU | {"packed": True, "attention": "flash_attention_2"}, 6560),
    (activations.layer_activations, CPU | {"attention": "eager"}, 6560 + 6 * 64 * 8),
    (activations.layer_activations, CPU | LORA, 768 + 768 + 1048 + 3200 + 8 + 7 * 4 * 4),
    (activations.layer_activations, CPU | LORA | {"adapter_targets": ["q_proj", "v_proj"]}, 5792 + 2 * 4 * 4),
    (activations.layer_activations, CPU | {"shape": NORMED}, 6560 + 8 * 128 + 4 * 8),
    (activations.layer_activations, CPU | LORA | {"shape": NORMED}, 5904 + 4 * 128 + 4 * 8),
    # Five heads of 25 and one for keys: q = 125, k = 25.
    (activations.layer_activations, CPU | {"shape": ODD}, 1536 + 768 + (4 * 300 + 20) + 3200 + 8),
    (activations.kept, CPU, TOKENS * (3 * 6560 + 768 + 768)),
    (activations.kept, CPU | {"recompute": 1}, TOKENS * (3 * 384 + 768 + 768)),
    (activations.kept, CPU | {"recompute": 2}, TOKENS * (2 * 384 + 6560 + 768 + 768)),
    (activations.kept, CPU | LORA, TOKENS * (3 * 5904 + 384 + 768)),
    (activations.kept, HALF | {"recompute": 1}, TOKENS * (3 * 384 + 768 + 768)),
    (activations.kept, HALF | FSDP | {"recompute": 1}, TOKENS // 4 * (3 * 192 + 576 + 384)),
    (activations.logits_work, {}, 4 * TOKENS * (300 + 96) + 115_200),
    (activations.logits_work, HALF, TOKENS * (6 * 300 + 4 * 96) + 57_600 + 115_200),
    (activations.logits_work, HALF | FSDP, TOKENS // 4 * (6 * 300 + 4 * 96) + 115_200),
    (activations.logits_work, LORA, 4 * TOKENS * (300 + 96)),
    (
        activations.logits_work,
        {"rollout": LONG, "micro_batch_tokens": 10**9},
        4 * (111_848 * 300 + 524_288 * 96) + 115_200,
    ),
    (activations.layer_work, {}, TOKENS * 4 * (600 + 192) + 76_800),
    (activations.layer_work, CPU | {"recompute": 2}, TOKENS * (6560 + 4 * 792) + 76_800),
    (activations.layer_work, LORA, TOKENS * 4 * 792),
    (activations.batch, {}, TOKENS * 29),
    (activations.batch, {"statistics": 2, "micro_batch_tokens": 1000}, 18 * 1000 * 37),
    (activations.scoring_work, {}, TOKENS * 4 * (600 + 384) + 4 * TOKENS * 300),
    (activations.scoring_work, {"rollout": LONG, "micro_batch_tokens": 10**9}, 524_288 * 3936 + 4 * 111_848 * 300),
    (states.weights, {}, 4 * PARAMETERS),
    (states.weights, LORA, 4 * (PARAMETERS + 18_336)),
    (states.gradients, LORA, 4 * 18_336),
    (states.gradients, {"strategy": "ddp", "devices": 2}, 8 * PARAMETERS),
    (states.gradients, FSDP | {"reduce": "step"}, PARAMETERS),  # one micro-batch: nothing is held back
    (states.gradients, FSDP | {"reduce": "step", "micro_batch_tokens": 64}, 5 * PARAMETERS),
    (states.gradients, FSDP | {"reduce": "auto", "micro_batch_tokens": 64, "gradient_room": 1_219_199}, PARAMETERS),
    (states.gradients, FSDP | {"reduce": "auto", "micro_batch_tokens": 64, "gradient_room": 1_219_200}, 5 * PARAMETERS),
    (states.gradients, {"micro_batch_tokens": 64, "reduce": "step"}, 4 * PARAMETERS),
    (states.optimizer_state, {}, 8 * PARAMETERS),
    (states.optimizer_state, {"optimizer": "adamw_paged"}, 8 * PARAMETERS),
    (states.optimizer_state, FSDP | {"optimizer": "adamw_8bit"}, 619_125 / 4),
    (states.optimizer_work, {}, 0),
    (states.optimizer_work, CPU, 230_400),
    (states.optimizer_work, CPU | FSDP, 57_600),
    (states.optimizer_work, CPU | LORA, 0),
    (states.reference, FSDP | {"reference": True}, PARAMETERS),
    (states.reference, {}, 0),
    (states.gathered, {"strategy": "fsdp"}, 0),
    (states.gathered, {"strategy": "ddp", "devices": 4}, 0),
    (states.gathered, FSDP, 4 * (57_696 + 3 * 82_368)),
    (states.gathered, FSDP | HALF | {"reshard": False}, 2 * (57_696 + 4 * 82_368)),
    (states.gathered_gradients, FSDP, 8 * 82_368),
    (states.gathered_gradients, FSDP | HALF, 6 * 82_368),
    (states.gathered_gradients, FSDP | LORA, 0),
    (states.gathered_gradients, {"strategy": "fsdp"}, 0),
    (states.cast_weights, {}, 0),
    (states.cast_weights, HALF, 2 * (3 * 82_176 + 28_800)),
    (states.cast_weights, HALF | FSDP, 0),
    (sampling.engine_weights, {}, 2 * PARAMETERS),
    (sampling.engine_least, {}, 2 * PARAMETERS + 2 * GIB + 24_576),
    (sampling.engine_cache, {}, 32 * GIB - 2 * PARAMETERS),
    (sampling.engine_cache, {"engine": EngineSetup("vllm", 2, share=0.0)}, 0),
    (sampling.engine_cache, {"device_memory": None}, 2 * GIB + 24_576),
    (sampling.engine_cache, CPU | {"engine": EngineSetup("vllm", 2, cpu_cache=7.0)}, 7),
    (sampling.engine_cache, {"engine": EngineSetup("transformers", 4)}, 0),
    (sampling.drawing_work, {}, 0),
    (sampling.drawing_work, {"engine": EngineSetup("transformers", 4)}, 256 * (49_152 * 4 / 3 + 300 * 48)),
    (sampling.drawing_work, {"engine": EngineSetup("transformers", 4, batch_size=9)}, 9 * (65_536 + 14_400)),
    (sampling.drawing_work, FSDP | {"engine": EngineSetup("transformers", 4)}, 64 * (65_536 + 14_400)),
    (sampling.sync_work, {}, 0),
    (sampling.sync_work, FSDP, 6 * 28_800),
    (host.processes, {"devices": 2}, 8 * GIB),
    (host.processes, CPU, 0.7 * GIB),
    (host.rollouts, {"devices": 2}, TOKENS * (2 * 29 + 68) + 2 * TOKENS * 68),
    (host.rollouts, {"devices": 2, "num_nodes": 2}, TOKENS / 2 * (2 * 29 + 68) + 2 * TOKENS * 68),
    (host.offloaded, FSDP, 0),
    (host.offloaded, FSDP | {"cpu_offload": True, "reference": True}, 20 * PARAMETERS),
    (host.checkpoint_copy, FSDP, 12 * PARAMETERS),
    (host.checkpoint_copy, {"strategy": "ddp", "devices": 2}, 24 * PARAMETERS),
    (host.checkpoint_copy, CPU, 0),
    (host.checkpoint_copy, CPU | {"saves_within": True}, 12 * PARAMETERS),
    (host.copy_beside_sampling, CPU, 8 * PARAMETERS),
    (host.copy_beside_sampling, {}, 0),
    (host.copy_beside_sampling, CPU | {"saves_within": True}, 0),
    (host.checkpoint_size, LORA | {"optimizer": "adamw_8bit"}, 6.03125 * 18_336),
    (host.checkpoints_on_disk, {}, 36 * PARAMETERS),
    (host.rollouts_on_disk, {}, 10 * TOKENS * 7),
    (forward_flops, {}, 2 * (3 * 82_176 + 28_800) + 4 * 96 * 32 * 3),
]


@pytest.mark.parametrize(("formula", "changed", "by_hand"), BY_HAND)
def test_a_formula_gives_what_was_worked_out_by_hand(
    formula: Callable[[Setup], float], changed: dict[str, Any], by_hand: float
) -> None:
    assert formula(replace(setup(SHAPE), **changed)) == pytest.approx(by_hand, rel=1e-12)


def test_the_shape_is_the_one_worked_with() -> None:
    assert SHAPE.parameters == PARAMETERS
    assert setup(SHAPE, **LORA).trained == 18_336
    assert setup(SHAPE).micro_tokens == TOKENS


def test_work_of_a_phase() -> None:
    flops = 2 * (3 * 82_176 + 28_800) + 36_864
    twice = RolloutSetup(64, 32, 3, 8, 2, 16, 48, 10)
    done = work(setup(SHAPE, rollout=twice, kept_passes=2, recompute=2))
    assert (done.steps, done.step_tokens, done.phase_tokens) == (6, TOKENS, 2 * 512 * 48)
    assert done.sampling == flops * 2 * 512 * 64
    assert done.scoring == flops * 512 * 64 * 2
    assert done.update == flops * 3.5 * TOKENS
    assert work(setup(SHAPE, **LORA)).update == flops * 2 * TOKENS


def test_a_device_holds_what_always_stands_and_the_largest_phase() -> None:
    planned = forecast.forecast(setup(SHAPE))
    sizes = {(line.name, line.phase): line.size for line in planned.device}
    assert sizes["weights, float32", ""] == 4 * PARAMETERS
    assert sizes["CUDA context and buffers", ""] == 1.5 * GIB
    # One micro-batch: gradients come as activations go.
    kept = TOKENS * (3 * 7072 + 768 + 768)
    assert sizes["activations kept for the backward pass", "update"] == kept - 4 * PARAMETERS
    at_work = TOKENS * 4 * 792 + 76_800  # a layer; the pass over the logits takes less
    always = 16 * PARAMETERS + 32 * GIB + 1.5 * GIB
    assert planned.peak_phase == "update"
    assert planned.device_total == always + TOKENS * 29 + kept - 4 * PARAMETERS + at_work
    assert planned.host_total == 4 * GIB + TOKENS * (2 * 29 + 68) + TOKENS * 68 + 12 * PARAMETERS
    assert planned.fits
    on_cpu = forecast.forecast(setup(SHAPE, accelerator="cpu", engine=EngineSetup("transformers", 4), devices=2))
    own = sum(line.size for line in on_cpu.host)
    assert on_cpu.host_total == own + 2 * on_cpu.device_total
    two = forecast.forecast(setup(SHAPE, micro_batch_tokens=8192))
    held = {line.name: line.size for line in two.device}
    assert held["activations kept for the backward pass"] == kept / 2


def test_a_run_is_refused_only_beyond_what_the_forecast_may_be_wrong_by() -> None:
    # The engine's share grows with the device: it is fixed here.
    engine = EngineSetup("transformers", 2)
    needed = forecast.forecast(setup(SHAPE, engine=engine)).device_total
    for share, fits, certainly in ((1.0, True, False), (0.99, False, False), (0.88, False, False), (0.86, False, True)):
        planned = forecast.forecast(setup(SHAPE, engine=engine, device_memory=needed * share))
        assert (planned.fits, bool(planned.certainly_too_large)) == (fits, certainly), share
        assert [short.place for short in planned.shortages] == ([] if fits else ["each GPU"])
    host_needed = forecast.forecast(setup(SHAPE)).host_total
    short = forecast.forecast(setup(SHAPE, host_memory=host_needed - 1)).shortages
    assert [(one.place, one.needed, one.there) for one in short] == [("this host", host_needed, host_needed - 1)]
    assert forecast.forecast(setup(SHAPE, host_memory=host_needed)).fits


def offered(**changed: Any) -> list[str]:
    """Every override the remedies try."""
    return [level.override for levels in _knobs(setup(SHAPE, **changed)) for level in levels]


def test_remedies_try_only_what_the_run_could_do() -> None:
    full = "model.gradient_checkpointing=full"
    budgets = [f"trainer.micro_batch_tokens={tokens}" for tokens in (8192, 4096, 2048, 1024, 512, 256, 128, 64)]
    shares = [f"engine.gpu_memory_utilization={share}" for share in ("0.35", "0.3", "0.25", "0.2", "0.15", "0.1")]
    shares += [f"engine.gpu_memory_utilization={share / 20:g}" for share in range(9, 19)]
    devices = [f"strategy=fsdp trainer.devices={count}" for count in (2, 4, 8)]
    rest = ["trainer.precision=bf16-mixed", "optim.name=adamw_8bit", *devices, "peft=lora"]
    assert offered() == [full, *budgets, *shares, *rest]
    on_cpu = offered(accelerator="cpu", engine=EngineSetup("transformers", 4, batch_size=64))
    sizes = [f"engine.batch_size={size}" for size in (32, 16, 8)]
    assert on_cpu == [full, *budgets, *sizes, "engine.dtype=bfloat16", "peft=lora"]
    largest = offered(engine=EngineSetup("transformers", 2), adapter_rank=4, recompute=1, micro_batch_tokens=64)
    assert largest[:5] == [f"engine.batch_size={size}" for size in (128, 64, 32, 16, 8)]
    node = {"devices": 8, "num_nodes": 2, "strategy": "fsdp", "recompute": 1, "half": True, "adapter_rank": 4}
    node |= {"micro_batch_tokens": 64, "reduce": "step", "engine": EngineSetup("transformers", 2, batch_size=1)}
    offload = "strategy.cpu_offload=true"
    micro = "strategy.reduce_gradients=micro_batch"
    assert offered(**node) == [micro, offload, "trainer.num_nodes=4", "trainer.num_nodes=8"]
    assert offered(**node | {"shard_over": "node"}) == [micro, "strategy.shard_over=all", offload]
    ddp = {**node, "strategy": "ddp"}
    assert offered(**ddp) == ["strategy=fsdp", "optim.name=adamw_8bit"]
    assert offered(**ddp | {"optimizer": "adamw_8bit"}) == ["strategy=fsdp"]
    assert offered(**node | {"cpu_offload": True, "reduce": "micro_batch", "num_nodes": 1}) == [
        "trainer.num_nodes=2",
        "trainer.num_nodes=4",
    ]


def test_a_level_changes_what_it_says() -> None:
    base = setup(SHAPE, engine=EngineSetup("vllm", 4, share=0.4))
    changed = {level.override: replace(base, **level.changed) for levels in _knobs(base) for level in levels}  # type: ignore[arg-type]
    assert changed["model.gradient_checkpointing=full"].recompute == 1
    assert changed["trainer.micro_batch_tokens=256"].micro_batch_tokens == 256
    assert changed["engine.gpu_memory_utilization=0.25"].engine == EngineSetup("vllm", 4, share=0.25)
    assert changed["engine.dtype=bfloat16"].engine.number_bytes == 2
    half = changed["trainer.precision=bf16-mixed"]
    assert (half.half, half.engine.number_bytes) == (True, 2)
    sharded = changed["strategy=fsdp trainer.devices=4"]
    assert (sharded.strategy, sharded.devices, sharded.shard_over) == ("fsdp", 4, "all")
    lora = changed["peft=lora"]
    assert (lora.adapter_rank, lora.adapter_targets, lora.reference) == (16, "all-linear", False)
