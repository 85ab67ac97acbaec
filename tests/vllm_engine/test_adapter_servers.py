"""Servers of other people's and adapters: taken where a server was started for them, else merged, and given again when lost.

The servers are stubs; real ones take adapters in test_adapters_alone.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import agreeing
import pytest
import torch
from peft import LoraConfig
from stub import Stub

from rlvr_lightning.errors import ConfigError, EngineLostError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import TrainedModule
from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine
from rlvr_lightning.rollout.synced import SyncedEngine
from rlvr_lightning.types import GenerationRequest, SamplingSpec

SOURCE = ModelSource(lora=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))
PROMPT = tuple(SOURCE.tokenizer("<user>1+2+3+4=<assistant>")["input_ids"])
REQUESTS = [GenerationRequest(PROMPT, seed) for seed in range(6)]
SAMPLING = SamplingSpec(1.0, 24, SOURCE.stop_token_ids())
widest_gap = partial(agreeing.widest_gap, requests=REQUESTS, sampling=SAMPLING)


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    return Policy(SOURCE)


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    servers: list[Stub] = []
    yield servers
    for server in servers:
        server.stop()


def synced(policy: Policy, folder: Path, *stubs: Stub) -> SyncedEngine:
    found = SyncedEngine(
        VLLMServerEngine(urls=[stub.url for stub in stubs], transfer_folder=str(folder), adapters="alone"), SOURCE
    )
    found.reserve(128)
    give(found, policy, 0)
    return found


def give(found: SyncedEngine, policy: Policy, version: int) -> None:
    module = SimpleNamespace(policy=policy, policy_version=version, compute_dtype=torch.float32)
    found.sync(cast(TrainedModule, module), torch.device("cpu"))


def test_servers_started_for_adapters_are_given_them_alone(policy: Policy, stubs: list[Stub], tmp_path: Path) -> None:
    stubs += [Stub(obstacle=""), Stub(obstacle="")]
    found = synced(policy, tmp_path, *stubs)
    give(found, policy, 1)
    assert widest_gap(found.engine, policy) < 1e-4
    for stub in stubs:
        # Named once, replaced at every sync, and forgotten is what was computed with the older ones.
        update = ["rlvr_load_adapters", "reset_prefix_cache", "resume"]
        assert stub.calls == ["pause", "load_lora_adapter", *update, "pause", *update]
    assert list(tmp_path.iterdir()) == []
    found.close()


REASONS: dict[str, tuple[str | None, str]] = {
    "it has no such route": (None, "was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
    "its workers cannot": ("started without --enable-lora", "started without --enable-lora"),
}


@pytest.mark.parametrize("name", REASONS)
def test_where_one_server_cannot_take_adapters_all_are_given_merged_weights(
    name: str, policy: Policy, stubs: list[Stub], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obstacle, reason = REASONS[name]
    stubs += [Stub(obstacle=""), Stub(obstacle=obstacle)]
    with caplog.at_level("INFO", "rlvr_lightning"):
        found = synced(policy, tmp_path, *stubs)
    (line,) = [text for text in caplog.messages if text.startswith("after each step the adapters")]
    assert "are merged with the weights" in line
    assert stubs[1].url in line
    assert reason in line
    assert [stub.updates for stub in stubs] == [1, 1]
    assert widest_gap(found.engine, policy) < 1e-4
    found.close()


def test_a_server_with_somebody_elses_adapters_is_given_merged_weights(
    policy: Policy, stubs: list[Stub], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stubs.append(Stub(obstacle=""))
    stubs[0].names = {"another"}
    with caplog.at_level("INFO", "rlvr_lightning"):
        found = synced(policy, tmp_path, *stubs)
    assert f"{stubs[0].url} holds adapters of somebody else's" in caplog.text
    assert widest_gap(found.engine, policy) < 1e-4
    found.close()


def test_a_server_that_has_lost_its_adapters_is_given_them_again(
    policy: Policy, stubs: list[Stub], tmp_path: Path
) -> None:
    stubs.append(Stub(obstacle=""))
    found = synced(policy, tmp_path, *stubs)
    stubs[0].forget()
    with pytest.raises(EngineLostError):
        found.engine.generate(REQUESTS, SAMPLING)
    assert cast(VLLMServerEngine, found.engine).take_counts()["refused"] >= 1
    assert len(dict(found.stream(REQUESTS, SAMPLING))) == len(REQUESTS)
    assert widest_gap(found.engine, policy) < 1e-4
    found.close()


@pytest.mark.parametrize(
    ("way", "device", "declined"),
    [
        ("auto", "cpu", "on a CPU vLLM draws slowly with adapters"),
        ("auto", "cuda", ""),
        ("alone", "cpu", ""),
        ("merged", "cuda", "engine.adapters=merged"),
    ],
)
def test_whether_adapters_are_tried_at_all(way: Any, device: str, declined: str) -> None:
    found = VLLMServerEngine(urls=["http://127.0.0.1:1"], adapters=way).declined(torch.device(device))
    assert found.startswith(declined)
    assert bool(found) == bool(declined)


def test_a_server_is_given_merged_weights_by_default_on_a_cpu(policy: Policy, tmp_path: Path) -> None:
    stub = Stub(obstacle="")
    engine = VLLMServerEngine(urls=[stub.url], transfer_folder=str(tmp_path))
    found = SyncedEngine(engine, SOURCE)
    found.reserve(128)
    try:
        give(found, policy, 0)
        assert not engine.takes_adapters
        assert widest_gap(found.engine, policy) < 1e-4
    finally:
        found.close()
        stub.stop()


def test_other_ways_are_refused() -> None:
    with pytest.raises(ConfigError, match="engine.adapters must be one of auto, alone, merged; got 'split'"):
        VLLMServerEngine(urls=["http://127.0.0.1:1"], adapters=cast(Any, "split"))
