"""Several servers as one: requests go where there is least to do, and again where something went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from rlvr_lightning.errors import EngineLostError, RolloutError
from rlvr_lightning.rollout.engines.vllm.client import AgainError, Server, ServerDownError, StaleError
from rlvr_lightning.rollout.engines.vllm.http import HttpThread
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

log = logging.getLogger(__name__)

# Between two looks at a server's health, and those in a row that may fail [seconds; times].
LOOK_S, FAILURES = 5.0, 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Fleet:
    """Spreads requests over servers.

    A prompt's responses go to one server, which computes the prompt once; prompts go to the server with the fewest
    requests under way. A server that is gone, or holds other weights than it should, gets none until the next sync.

    Args:
        servers: that there are.
        http: sends requests.
        retries: of a request that was answered wrongly.
    """

    def __init__(self, servers: Sequence[Server], http: HttpThread, retries: int) -> None:
        self.servers, self.http, self.retries = list(servers), http, retries
        self._versions: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._watch: asyncio.Task[None] | None = None

    def only(self, server: Server) -> Fleet:
        """One server alone, asked itself where there is a router, with the same books."""
        if server.asked != server.url:
            server = Server(server.url, self.http, server.timeout_s)
        alone = Fleet([server], self.http, self.retries)
        alone._versions, alone._counts = self._versions, self._counts
        return alone

    def synced(self, label: str, version: int) -> None:
        """All servers hold new weights."""
        self._versions[label] = version
        for server in self.servers:
            server.down = server.stale = False
            server.gone = asyncio.Event()

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Future[Generation]]:
        """A future for each request; any of them may raise `EngineLostError`."""
        homes: dict[tuple[int, ...], Server] = {}
        return [self.http.submit(self._one(request, sampling, homes)) for request in requests]

    def weight_sums(self) -> list[list[dict[str, Any]]]:
        """Of each server and each of its workers. One that is gone by now is left out: whoever asks it for more will notice."""

        async def of(server: Server) -> list[dict[str, Any]] | None:
            try:
                answer = await server.post("collective_rpc", {"method": "rlvr_weight_sums"})
            except (ServerDownError, AgainError):
                return None
            results: list[dict[str, Any]] = answer["results"]
            return results

        async def all_of_them() -> list[list[dict[str, Any]] | None]:
            return await asyncio.gather(*map(of, self.servers))

        return [found for found in self.http.call(all_of_them()) if found is not None]

    def count(self, name: str) -> None:
        """Something went wrong and was mended."""
        self._counts[name] = self._counts.get(name, 0) + 1

    def take_counts(self) -> dict[str, int]:
        """What was counted since the last call."""
        counts = dict(self._counts)
        self._counts.clear()
        return counts

    async def _one(
        self, request: GenerationRequest, sampling: SamplingSpec, homes: dict[tuple[int, ...], Server]
    ) -> Generation:
        failures = 0
        while True:
            server = self._choose(request, homes)
            server.load += 1
            try:
                return await self._unless_down(server, request, sampling)
            except ServerDownError as error:
                self._leave_out(server, "down", error)
            except StaleError as error:
                self.count("refused")
                self._leave_out(server, "stale", error)
            except AgainError as error:
                failures += 1
                if failures > self.retries:
                    raise RolloutError(f"after engine.retries={self.retries}: {error}") from error
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))
            finally:
                server.load -= 1
            self.count("retries")

    def _choose(self, request: GenerationRequest, homes: dict[tuple[int, ...], Server]) -> Server:
        home = homes.get(request.token_ids)
        if home is None or not home.usable:
            there = [server for server in self.servers if server.usable]
            if not there:
                raise EngineLostError("no vLLM server is left that holds the policy's weights")
            home = homes[request.token_ids] = min(there, key=lambda server: server.load)
        return home

    def _leave_out(self, server: Server, why: str, error: RolloutError) -> None:
        if server.usable:
            log.warning("%s: it gets no requests until it is given weights again", error)
        setattr(server, why, True)

    async def _unless_down(self, server: Server, request: GenerationRequest, sampling: SamplingSpec) -> Generation:
        """A response, or the news that the server has stopped answering anything."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_after())
        drawing = asyncio.create_task(server.generate(request, sampling, self._versions))
        gone = asyncio.create_task(server.gone.wait())
        try:
            await asyncio.wait({drawing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                raise ServerDownError(f"{server.url} does not answer any more")
            return await drawing
        finally:
            for task in (drawing, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RolloutError):
                await drawing

    async def _look_after(self) -> None:
        """While requests are under way, ask each server how it is."""
        failures = dict.fromkeys(self.servers, 0)
        while any(server.load for server in self.servers):
            await asyncio.sleep(LOOK_S)
            for server in self.servers:
                try:
                    await server.get("health", LOOK_S)
                    failures[server] = 0
                except ServerDownError:
                    failures[server] += 1
                if failures[server] >= FAILURES:
                    server.gone.set()
