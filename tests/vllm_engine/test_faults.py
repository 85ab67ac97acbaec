"""Servers that go wrong in every way we could think of: each time an outcome that docs/faults.md names.

The servers are stubs (a real model behind vLLM's routes); real ones die in test_servers.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from stub import Stub
from training import SMALL

from rlvr_lightning.cli.main import main
from rlvr_lightning.errors import EngineLostError, RolloutError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.vllm import fleet
from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine
from rlvr_lightning.types import GenerationRequest, SamplingSpec

SOURCE = ModelSource()
PROMPTS = [tuple(SOURCE.tokenizer(f"<user>{text}<assistant>")["input_ids"]) for text in ("1+2+3+4=", "19+17+1-4=")]
REQUESTS = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 6)]
SAMPLING = SamplingSpec(1.0, 24, SOURCE.stop_token_ids())


def started(*stubs: Stub, **settings: Any) -> VLLMServerEngine:
    engine = VLLMServerEngine(urls=[stub.url for stub in stubs], transfer_folder="/tmp", **settings)
    engine.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    engine.sync(list(Policy(SOURCE).full_weights()), 0)
    return engine


def right() -> list[tuple[int, ...]]:
    """What the model answers."""
    server = Stub()
    engine = started(server)
    drawn = [one.token_ids for one in engine.generate(REQUESTS, SAMPLING)]
    engine.close()
    server.stop()
    return drawn


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    return right()


def answers(engine: VLLMServerEngine) -> list[tuple[int, ...]]:
    return [one.token_ids for one in engine.generate(REQUESTS, SAMPLING)]


async def _text(text: str, status: int = 200) -> web.StreamResponse:
    return web.Response(text=text, status=status, content_type="application/json")


SOMETIMES: dict[str, Any] = {
    "it answers 500": lambda: _text("boom", 500),
    "it is overloaded (503)": lambda: _text("busy", 503),
    "it answers no JSON": lambda: _text("<html>"),
    "it answers an empty object": lambda: _text("{}"),
    "it answers no choice": lambda: _text('{"choices": []}'),
    "it answers without log-probabilities": lambda: _text('{"choices": [{"token_ids": [1], "logprobs": null}]}'),
}


@pytest.mark.parametrize("what", SOMETIMES)
def test_what_goes_wrong_now_and_then_is_asked_again(what: str, stub: Stub, expected: list[tuple[int, ...]]) -> None:
    engine = started(stub)
    stub.asked = 0

    async def fault(number: int) -> web.StreamResponse | None:
        return await SOMETIMES[what]() if number % 3 == 1 else None

    stub.fault = fault
    assert answers(engine) == expected
    assert engine.take_counts()["retries"] >= len(REQUESTS) // 3
    assert engine.take_counts() == {}
    engine.close()


SPOILT: dict[str, tuple[Any, str]] = {
    "nan": (lambda choice: choice["logprobs"]["content"][0].update(logprob=float("nan")), "that are no numbers"),
    "empty": (lambda choice: choice.update(token_ids=[], logprobs={"content": []}), "an empty response"),
    "short": (lambda choice: choice["logprobs"]["content"].pop(), "log-probabilities to"),
    "aborted": (lambda choice: choice.update(finish_reason="abort"), "ended a response with 'abort'"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_an_answer_that_stays_wrong_ends_the_draw_with_the_reason(what: str, stub: Stub) -> None:
    engine = started(stub, retries=2)
    spoil, message = SPOILT[what]
    stub.asked, stub.spoil = 0, spoil
    with pytest.raises(RolloutError, match=rf"after engine.retries=2: .*{message}"):
        answers(engine)
    engine.close()


def test_a_slow_answer_is_waited_for_and_one_that_never_comes_is_asked_again(
    stub: Stub, expected: list[tuple[int, ...]]
) -> None:
    engine = started(stub, timeout_s=6)
    stub.asked = 0

    async def fault(number: int) -> web.StreamResponse | None:
        await asyncio.sleep({2: 2.0, 5: 120.0}.get(number, 0.0))
        return None

    stub.fault = fault
    assert answers(engine) == expected
    assert engine.take_counts()["retries"] == 1
    engine.close()


def test_a_request_that_a_server_refuses_is_not_repeated(stub: Stub) -> None:
    engine = started(stub)
    stub.asked = 0

    async def fault(number: int) -> web.StreamResponse | None:
        return await _text("prompt too long", 400)

    stub.fault = fault
    with pytest.raises(RolloutError, match="refused: 400: prompt too long"):
        engine.generate(REQUESTS[:1], SAMPLING)
    assert stub.asked == 1
    engine.close()


def test_the_work_of_a_server_that_is_gone_is_done_by_another(
    stub: Stub, other: Stub, expected: list[tuple[int, ...]]
) -> None:
    engine = started(stub, other)
    stub.stop()
    assert answers(engine) == expected
    assert other.asked > len(REQUESTS)
    # At the next sync it is missed.
    with pytest.raises(RolloutError, match="does not answer.*: start it again, then go on with resume="):
        engine.sync(list(Policy(SOURCE).full_weights()), 1)
    stub.start(stub.port)
    engine.sync(list(Policy(SOURCE).full_weights()), 1)
    assert answers(engine) == expected
    assert {one.policy_version for one in engine.generate(REQUESTS, SAMPLING)} == {1}
    engine.close()


def test_without_any_server_the_engine_is_lost_after_what_has_ended(stub: Stub) -> None:
    engine = started(stub)
    stub.stop()
    with pytest.raises(EngineLostError, match="no vLLM server is left"):
        answers(engine)
    stub.start(stub.port)
    engine.close()


def test_a_server_that_stops_answering_anything_is_left(
    stub: Stub, other: Stub, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "LOOK_S", 0.2)
    engine = started(stub, other)
    first = stub.asked + 1

    async def fault(number: int) -> web.StreamResponse | None:
        if number == first:
            stub.freeze()
        await asyncio.sleep(60)
        return None

    stub.fault = fault
    assert answers(engine) == expected
    stub.thaw()
    engine.close()


def test_a_server_that_has_forgotten_its_weights_is_noticed_by_its_first_answer(
    stub: Stub, other: Stub, expected: list[tuple[int, ...]]
) -> None:
    engine = started(stub, other)
    stub.forget()
    assert answers(engine) == expected
    counts = engine.take_counts()
    assert counts["refused"] >= 1
    assert counts["retries"] == counts["refused"]
    other.forget()
    with pytest.raises(EngineLostError):
        answers(engine)
    engine.sync(list(Policy(SOURCE).full_weights()), 0)
    assert answers(engine) == expected
    engine.close()


@pytest.mark.slow
def test_weights_of_another_run_are_not_taken_for_ones_own(stub: Stub) -> None:
    engine, rival = started(stub), started(stub)
    with pytest.raises(EngineLostError):
        answers(engine)
    assert len(answers(rival)) == len(REQUESTS)
    rival.close()
    engine.close()


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"missing": ("weight_info",), "version": "0.27.1"},
        r"\(vLLM 0.27.1\) cannot be given weights: start it as docs/cluster.md has it, with VLLM_SERVER_DEV_MODE=1",
    ),
    ({"max_length": 64}, "takes 64 tokens, prompt and response have up to 128: .* --max-model-len 128"),
    ({"missing": ("v1/models",)}, "is no vLLM server that is ready"),
    ({"missing": ("inference/v1/generate",)}, "does not draw from token ids: .* with --enable-scale-out"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_a_server_that_cannot_be_used_is_refused_before_anything_is_drawn(
    settings: dict[str, Any], message: str
) -> None:
    server = Stub(**settings)
    engine = VLLMServerEngine(urls=[server.url])
    with pytest.raises(RolloutError, match=message):
        engine.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    engine.close()
    server.stop()


def test_a_closed_port_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = Stub()
    server.stop()
    command = ("fit", *SMALL, "engine=vllm_server", f"engine.urls=[{server.url}]", f"output_dir={tmp_path}")
    assert main(command) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert f"{server.url} is no vLLM server that is ready" in line
