"""Servers behind a router: it is asked for responses, and nothing else goes through it.

Router and servers are stubs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from aiohttp import web
from stub import Stub

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine
from rlvr_lightning.types import GenerationRequest, SamplingSpec

SOURCE = ModelSource()
PROMPT = tuple(SOURCE.tokenizer("<user>1+2+3+4=<assistant>")["input_ids"])
REQUESTS = [GenerationRequest(PROMPT, seed) for seed in range(8)]
SAMPLING = SamplingSpec(1.0, 24, SOURCE.stop_token_ids())


class Router(Stub):
    """Hands requests to the servers behind it in turn. Of those `asked`, none is counted by the servers."""

    def __init__(self, behind: list[Stub]) -> None:
        super().__init__()
        self.behind = behind

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return web.json_response(self.behind[self.asked % len(self.behind)]._drawn(await request.json()))


@pytest.fixture
def servers() -> Iterator[list[Stub]]:
    found = [Stub(), Stub()]
    yield found
    for server in found:
        server.stop()


@pytest.fixture
def router(servers: list[Stub]) -> Iterator[Router]:
    found = Router(servers)
    yield found
    found.stop()


@pytest.fixture
def engine(servers: list[Stub], router: Router) -> Iterator[VLLMServerEngine]:
    urls = [server.url for server in servers]
    engine = VLLMServerEngine(urls=urls, router=f"{router.url}/", transfer_folder="/tmp", retries=9)
    engine.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    yield engine
    engine.close()


def changed() -> Policy:
    """Other weights than those the servers began with."""
    policy = Policy(SOURCE)
    with torch.no_grad():
        for parameter in policy.causal_lm.parameters():
            parameter.mul_(1.1)
    return policy


def test_responses_are_asked_of_the_router_and_weights_go_to_each_server(
    engine: VLLMServerEngine, servers: list[Stub], router: Router
) -> None:
    weights = list(changed().full_weights())
    engine.sync(weights, 7)
    # One each: whether they can be used was asked of themselves.
    assert [server.asked for server in servers] == [1, 1]
    drawn = engine.generate(REQUESTS, SAMPLING)
    assert (router.asked, [server.asked for server in servers]) == (8, [1, 1])
    assert {one.policy_version for one in drawn} == {7}
    assert (router.updates, router.calls, [server.updates for server in servers]) == (0, [], [1, 1])
    direct = VLLMServerEngine(urls=[servers[0].url], transfer_folder="/tmp")
    direct.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    direct.sync(weights, 7)
    assert [one.token_ids for one in direct.generate(REQUESTS, SAMPLING)] == [one.token_ids for one in drawn]
    direct.close()


def test_each_copy_of_the_policy_is_looked_at_past_the_router(
    engine: VLLMServerEngine, servers: list[Stub], router: Router
) -> None:
    engine.sync(list(Policy(SOURCE).full_weights()), 0)
    for place, copy in enumerate(engine.replicas()):
        before = [server.asked for server in servers]
        copy.generate(REQUESTS[:4], SAMPLING)
        gained = [server.asked - count for server, count in zip(servers, before, strict=True)]
        assert gained == [4 * (number == place) for number in range(2)]
    assert router.asked == 0
    assert len(engine.weight_sums()) == 2


def test_a_router_that_does_not_answer_is_asked_again_while_its_servers_are_well(
    engine: VLLMServerEngine, router: Router
) -> None:
    engine.sync(list(Policy(SOURCE).full_weights()), 0)
    router.stop()
    (pending,) = engine.submit(REQUESTS[:1], SAMPLING)
    # More often than there are servers that could be taken for gone.
    counted, until = 0, time.monotonic() + 30
    while counted < 3 and not pending.done() and time.monotonic() < until:
        counted += engine.take_counts().get("retries", 0)
        time.sleep(0.02)
    router.start(router.port)
    assert pending.result(30).policy_version == 0
