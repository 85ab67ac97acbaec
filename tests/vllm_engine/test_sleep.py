"""When vLLM gives a GPU's memory back, and in which order it is woken.

There is no GPU here: vLLM is a mock that writes down what it is told, and no call of CUDA is made.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.rollout.engines.vllm import in_process
from rlvr_lightning.rollout.engines.vllm.in_process import VLLMEngine

WEIGHTS = [("embedding", torch.ones(2, dtype=torch.bfloat16)), ("head", torch.zeros(3, dtype=torch.bfloat16))]
LOADED = ("reload_weights", [("embedding", torch.float32), ("head", torch.float32)])


class MockLLM:
    """Stands for `vllm.LLM` on a GPU: a log of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.idle = True

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", tags))

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append((method, [(name, weight.dtype) for name, weight in kwargs["weights_iterator"]]))

    def apply_model(self, function: Any) -> None:
        self.calls.append(("apply_model", function.__name__))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache", None))
        return self.idle


def started(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[VLLMEngine, MockLLM]:
    monkeypatch.setattr(in_process, "check_vllm", lambda setting: None)
    monkeypatch.setattr(VLLMEngine, "_on_device", lambda self: contextlib.nullcontext())
    engine, llm = VLLMEngine(**settings), MockLLM()
    engine._device, engine._llm, engine.policy_version = torch.device("cuda", 0), llm, 4
    return engine, llm


def test_an_engine_at_rest_sleeps_once_and_holds_no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, llm = started(monkeypatch)
    engine.rest()
    assert (llm.calls, engine.policy_version) == ([("sleep", 2)], -1)
    engine.rest()
    assert llm.calls == [("sleep", 2)]


def test_it_wakes_weights_loads_them_and_only_then_wakes_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, llm = started(monkeypatch)
    engine.rest()
    llm.calls.clear()
    engine.sync(WEIGHTS, 5)
    # Nothing is packed anew: that is for the CPU.
    woken = [("wake_up", ["weights"]), LOADED, ("wake_up", ["kv_cache"]), ("reset_prefix_cache", None)]
    assert (llm.calls, engine.policy_version) == (woken, 5)
    # Awake it is given weights without being woken, and may sleep again.
    llm.calls.clear()
    engine.sync(WEIGHTS, 6)
    engine.rest()
    assert llm.calls == [LOADED, ("reset_prefix_cache", None), ("sleep", 2)]


@pytest.mark.parametrize(("sleep", "device"), [(False, "cuda"), (True, "cpu")])
def test_it_never_sleeps_where_it_is_told_not_to_or_has_no_gpu(
    sleep: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, llm = started(monkeypatch, sleep=sleep)
    engine._device = torch.device(device)
    engine.rest()
    assert (llm.calls, engine.policy_version) == ([], 4)


def test_weights_are_refused_while_responses_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, llm = started(monkeypatch)
    llm.idle = False
    with pytest.raises(RolloutError, match="could not reset its prefix cache: requests are still running"):
        engine.sync(WEIGHTS, 5)
    assert engine.policy_version == 4
