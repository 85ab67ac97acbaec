"""Real vLLM that is given a policy's adapters alone: in process and as a server, or merged where it cannot take them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import agreeing
import pytest
import torch
from peft import LoraConfig
from training import SMALL

from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import TrainedModule
from rlvr_lightning.rollout.engines.vllm.in_process import VLLMEngine
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed
from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine
from rlvr_lightning.rollout.synced import SyncedEngine
from rlvr_lightning.rollout.weight_sums import PolicyWeights, base_sums, compare
from rlvr_lightning.types import GenerationRequest, SamplingSpec

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_installed(), reason="vllm is not installed: nox -s vllm installs it"),
]
LINEAR = {"r": 5, "lora_alpha": 10, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# Ranks and scales of their own, and a layer without.
UNEVEN = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 32}, "use_rslora": True}
SOURCE = ModelSource(lora=LoraConfig(**{**LINEAR, **UNEVEN, "exclude_modules": r".*layers\.1\.mlp\.down_proj"}))
PROMPTS = [tuple(SOURCE.tokenizer(f"<user>{text}<assistant>")["input_ids"]) for text in ("1+2+3+4=", "19+17+1-4=")]
REQUESTS = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 4)]
SAMPLING = SamplingSpec(1.0, 24, SOURCE.stop_token_ids())
widest_gap = partial(agreeing.widest_gap, requests=REQUESTS, sampling=SAMPLING)
Engine = VLLMEngine | VLLMServerEngine


def build(kind: str, folder: Path) -> Engine:
    if kind == "in process":
        return VLLMEngine(max_num_seqs=16, adapters="alone")
    return VLLMServerEngine(max_num_seqs=16, log_folder=str(folder), restarts=9, adapters="alone")


@torch.no_grad()
def moved(policy: Policy, seed: int, size: float = 0.01) -> Policy:
    """The policy with its adapters moved: far enough to be seen, and not so far that rounding is."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return policy


def module_of(policy: Policy, version: int) -> TrainedModule:
    return cast(TrainedModule, SimpleNamespace(policy=policy, policy_version=version, compute_dtype=torch.float32))


def held(engine: Engine) -> str:
    """The adapters that an engine's worker has, by vLLM's numbers."""
    if isinstance(engine, VLLMEngine):
        return str(engine._llm.collective_rpc("list_loras")[0])
    assert engine._fleet is not None
    (server,) = engine._fleet.servers
    answer = server.http.call(server.post("collective_rpc", {"method": "list_loras"}))
    return str(answer["results"][0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["in process", "server"])
def synced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncedEngine]:
    synced = SyncedEngine(build(request.param, tmp_path_factory.mktemp("servers")), SOURCE)
    synced.reserve(96)
    synced.sync(module_of(Policy(SOURCE), 0), torch.device("cpu"))
    yield synced
    synced.close()


def test_the_adapters_alone_travel_and_are_drawn_with(synced: SyncedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cast(Engine, synced.engine)
    assert engine.takes_adapters
    plain = Policy(ModelSource())
    assert widest_gap(engine, Policy(SOURCE)) < 1e-4
    travelled: list[str] = []

    def seen(self: PolicyWeights) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in whole(self):
            travelled.append(name)
            yield name, weight

    whole = PolicyWeights.__iter__
    monkeypatch.setattr(PolicyWeights, "__iter__", seen)
    policy = Policy(SOURCE)
    for version in (1, 2):
        moved(policy, version)
        before = widest_gap(engine, policy)
        travelled.clear()
        synced.sync(module_of(policy, version), torch.device("cpu"))
        assert widest_gap(engine, policy) < 1e-4 < 0.05 < before
        assert widest_gap(engine, plain) > 0.05
        assert sorted(travelled) == sorted(name for name, _ in policy.adapter_weights())
        assert all(".lora_A." in name or ".lora_B." in name for name in travelled)
        assert {one.policy_version for one in engine.generate(REQUESTS, SAMPLING)} == {version}
        # The older ones are gone.
        assert held(engine) == "{1}"


def own_name(name: str) -> str:
    parts = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
        **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    }
    return ".".join(parts.get(piece, piece) for piece in name.split("."))


def test_a_stale_or_missing_adapter_is_named(synced: SyncedEngine) -> None:
    engine = cast(Engine, synced.engine)
    policy = moved(Policy(SOURCE), 1)
    before = {name: weight.clone() for name, weight in policy.adapter_weights()}
    module = module_of(moved(policy, 2, 2e-4), 3)
    weights = PolicyWeights(module, torch.float32, base_sums(module, torch.float32))
    after = dict(weights)

    def differ(given: dict[str, torch.Tensor]) -> tuple[str, ...]:
        engine.sync(list(given.items()), 3)
        (workers,) = engine.weight_sums()
        found = compare(weights.sums, workers)
        # Every weight and every matrix can be looked at.
        assert not found.hidden
        return found.differ

    assert differ(after) == ()
    for name in [name for name in after if "layers.1" in name]:
        assert differ({**after, name: before[name]}) == (own_name(name),)
    for layer in ("model.layers.0.self_attn.v_proj", "model.layers.2.mlp.down_proj"):
        left = {name: weight for name, weight in after.items() if not name.startswith(layer)}
        assert differ(left) == (own_name(f"{layer}.lora_A.weight"), own_name(f"{layer}.lora_B.weight"))


def test_a_base_that_is_another_is_named(synced: SyncedEngine) -> None:
    engine = cast(Engine, synced.engine)
    policy = Policy(SOURCE)
    with torch.no_grad():
        policy.causal_lm.model.layers[1].mlp.up_proj.base_layer.weight.add_(1e-4)
    weights = PolicyWeights(module_of(policy, 4), torch.float32, base_sums(module_of(policy, 4), torch.float32))
    engine.sync(weights, 4)
    (workers,) = engine.weight_sums()
    assert compare(weights.sums, workers).differ == ("model.layers.1.mlp.gate_up_proj.weight",)


def test_a_server_that_is_started_again_is_given_the_adapters_again(synced: SyncedEngine) -> None:
    engine = synced.engine
    if not isinstance(engine, VLLMServerEngine):
        pytest.skip("there is none")
    policy = moved(Policy(SOURCE), 5)
    assert engine._own is not None
    engine._own._processes[0].kill()
    synced.sync(module_of(policy, 5), torch.device("cpu"))
    assert engine.take_counts() == {"restarts": 1}
    assert widest_gap(engine, policy) < 1e-4


NOT_TAKEN = {
    "use_dora=true": {"use_dora": True},
    "vLLM takes ranks up to 512, the highest here is 513": {"rank_pattern": {"q_proj": 513}},
}
MERGED = "after each step the adapters are merged with the weights, all of which travel: "


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("rlvr_lightning")]


def merged_and_drawn_with(kind: str, source: ModelSource, folder: Path) -> None:
    synced = SyncedEngine(build(kind, folder), source)
    engine, policy = cast(Engine, synced.engine), Policy(source)
    synced.reserve(96)
    try:
        for version in (1, 2):
            synced.sync(module_of(moved(policy, version), version), torch.device("cpu"))
            assert not engine.takes_adapters
            assert widest_gap(engine, policy) < 1e-4
            assert widest_gap(engine, Policy(ModelSource())) > 0.01
    finally:
        synced.close()


@pytest.mark.parametrize(("why", "kind"), [*((why, "in process") for why in NOT_TAKEN), ("use_dora=true", "server")])
def test_what_vllm_cannot_take_is_merged(why: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rlvr_lightning"):
        merged_and_drawn_with(kind, ModelSource(lora=LoraConfig(**{**LINEAR, **NOT_TAKEN[why]})), tmp_path)
    assert told(caplog) == [MERGED + why]


def test_what_turns_out_not_to_be_taken_once_vllm_has_started_is_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlvr_lightning.rollout.engines.vllm.worker import WorkerExtension

    real = WorkerExtension.rlvr_adapter_obstacle
    monkeypatch.setattr(
        WorkerExtension, "rlvr_adapter_obstacle", lambda self, rank, targets: real(self, rank, [*targets, "router"])
    )
    with caplog.at_level("INFO", "rlvr_lightning"):
        merged_and_drawn_with("in process", SOURCE, tmp_path)
    assert told(caplog) == [f"{MERGED}vLLM has no adapters for router of this model"]


FORMS = {
    "in process": ("engine=vllm",),
    "one engine over two ranks": ("engine=vllm", "engine.tensor_parallel=2", "trainer.devices=2", "strategy=fsdp"),
    "a tensor-parallel server": ("engine=vllm_server", "engine.tensor_parallel=2"),
    "while responses are under way": ("engine=vllm_server", "rollout.max_lag=1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_run_draws_with_its_adapters_after_every_sync(form: str, tmp_path: Path) -> None:
    small = [item for item in SMALL if not item.startswith("engine=")]
    more = (
        "conf=grpo",
        "peft=lora",
        "engine.adapters=alone",
        "optim.lr=0.01",
        "trainer.max_epochs=4",
        "rollout.prompts_per_step=4",
    )
    command = [sys.executable, "-m", "rlvr_lightning", "fit", *small, *more, *FORMS[form], f"output_dir={tmp_path}"]
    done = subprocess.run(command, check=True, timeout=400, capture_output=True, text=True)
    assert "after each step the adapters travel alone" in done.stdout + done.stderr
    table = [row for row in read_table(tmp_path / "logs" / "metrics.csv") if "rollout/canary_gap_max" in row]
    assert len(table) == 4
    assert max(float(row["rollout/canary_gap_max"]) for row in table) < 1e-4
    assert {row.get("engine/refused", "0.0") for row in table} == {"0.0"}
