"""The papers' full-size experiments: every object they are made of, their numbers, and whether they fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from rlvr_lightning.callbacks.table import MetricsTable
from rlvr_lightning.cli.plan import plan_run, verdict
from rlvr_lightning.config.build import build_data, build_module
from rlvr_lightning.config.checks import check_kinds
from rlvr_lightning.config.components import component, model_source
from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.trainer import build_trainer
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.recompute import recompute
from rlvr_lightning.models.shapes import packaged
from rlvr_lightning.rollout.checks import check_on_policy
from rlvr_lightning.rollout.engines.vllm import in_process
from rlvr_lightning.rollout.engines.vllm.in_process import VLLMEngine
from rlvr_lightning.training.forecast import states
from rlvr_lightning.training.forecast.setup import GIB
from rlvr_lightning.training.sharding import shard

# Parameters, ranks, longest sequence.
FULL_SIZE = {
    "archer_code_1_5b": (1_777_088_000, 8, 34816),
    "archer_math_1_5b": (1_777_088_000, 8, 34816),
    "lp_reg_qwen3_14b": (14_768_307_200, 32, 10240),
    "lp_reg_qwen2_5_32b": (32_763_876_352, 64, 10240),
}


@pytest.fixture(params=sorted(FULL_SIZE))
def cfg(request: pytest.FixtureRequest, tmp_path: Path) -> DictConfig:
    """An experiment with a file for its task; nothing else is changed."""
    rows = [{"problem": f"{n} + 1", "answer": str(n + 1)} for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return compose([f"conf={request.param}", f"task.path={tmp_path / 'rows.jsonl'}", f"output_dir={tmp_path / 'run'}"])


def test_every_object_builds_from_its_own_settings(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ranks, longest = FULL_SIZE[cfg.name]
    check_kinds(cfg)
    # vLLM is imported when the engine starts; what is asked here is whether it takes these settings.
    monkeypatch.setattr(in_process, "check_vllm", lambda setting: None)
    engine = component(cfg, "engine")
    assert isinstance(engine, VLLMEngine)
    assert engine.gpu_memory_utilization == cfg.engine.gpu_memory_utilization
    source = model_source(cfg)
    assert source.gradient_checkpointing == "full"
    assert source.lora is None
    data = build_data(cfg, source, engine)
    assert data.budget.tokens >= longest == cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens
    assert (data.group_size, data.prompts_per_epoch) == (cfg.rollout.group_size, cfg.rollout.prompts_per_epoch)
    module = build_module(cfg, source)
    assert module.objective.requires_ref == cfg.name.startswith("archer")
    assert (module.optim.lr, module.optim.name) == (1e-6, "adamw")
    assert module.sharding.precision == "bf16-mixed"
    check_on_policy(data, module.objective)
    assert cfg.trainer.save_every_n_minutes == 30
    assert (module.sharding.shard_over, module.sharding.cpu_offload) == ("all", False)
    assert cfg.trainer.devices * cfg.trainer.num_nodes == cfg.hardware.gpus == ranks


def test_the_trainer_shards_over_every_rank_and_computes_in_bf16(cfg: DictConfig) -> None:
    # Lightning looks for GPUs when it is built with them; the rest is what the experiment says.
    cfg.trainer.accelerator = "cpu"
    trainer = build_trainer(cfg, [], MetricsTable(Path(cfg.output_dir)))
    assert isinstance(trainer.strategy, ModelParallelStrategy)
    assert (trainer.num_devices, trainer.num_nodes) == (cfg.trainer.devices, cfg.trainer.num_nodes)
    assert trainer.num_devices * trainer.num_nodes == FULL_SIZE[cfg.name][1]
    # FSDP2 casts what it gathers; the trainer's own precision would cast the float32 weights.
    assert trainer.precision == "32-true"


def test_it_fits_the_hardware_it_names(cfg: DictConfig) -> None:
    planned = plan_run(cfg)
    assert planned.setup.shape.parameters == FULL_SIZE[cfg.name][0]
    assert planned.setup.ranks == cfg.hardware.gpus
    assert planned.setup.device_memory == cfg.hardware.gpu_memory_gb * GIB
    assert planned.setup.micro_tokens == FULL_SIZE[cfg.name][2]
    assert planned.setup.recompute == 1
    assert planned.setup.half
    assert planned.fits
    assert verdict(planned).startswith("fits: ")


@pytest.fixture
def ranks(cfg: DictConfig) -> Iterator[DeviceMesh]:
    """As many ranks as the experiment has, of which this process is the first and the others are made up."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    number = FULL_SIZE[cfg.name][1]
    dist.init_process_group("fake", rank=0, world_size=number, store=FakeStore())
    yield init_device_mesh("cpu", (number,))
    dist.destroy_process_group()


def test_the_policy_is_shared_out_as_planned(cfg: DictConfig, ranks: DeviceMesh, tmp_path: Path) -> None:
    planned = plan_run(cfg)
    (tmp_path / "config.json").write_text(json.dumps(packaged()[cfg.model.path]))
    cfg.model.path = str(tmp_path)
    source = model_source(cfg)
    policy = Policy.__new__(Policy)  # its constructor reads weights
    nn.Module.__init__(policy)
    policy.has_adapters, policy.model = False, source.build()
    assert sum(weight.numel() for weight in policy.parameters()) == FULL_SIZE[cfg.name][0]
    assert {weight.device.type for weight in policy.parameters()} == {"meta"}
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    layers = policy.causal_lm.get_decoder().layers
    recompute(layers, source.gradient_checkpointing)
    assert all("forward" in vars(layer) for layer in layers)
    shard(policy, ranks, build_module(cfg, source).sharding)
    own = sum(cast(DTensor, weight).to_local().nbytes for weight in policy.parameters())
    # Rows are shared out whole, so that the first rank may have one more of each.
    assert own == pytest.approx(states.weights(planned.setup), rel=0.01)
