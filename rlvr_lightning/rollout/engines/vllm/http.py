"""HTTP from a thread of its own, so that thousands of requests are under way while the run does other things."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp

T = TypeVar("T")
# An idle connection is kept for less than servers keep theirs (uvicorn: 5): one that a server is just closing takes no request
# [seconds].
KEEP_S = 2.0


class HttpThread:
    """An event loop with a client session in a thread; it ends with `close` or with the process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine requests", daemon=True)
        self._thread.start()
        self.session: aiohttp.ClientSession = self.call(self._open())

    async def _open(self) -> aiohttp.ClientSession:
        # A response may take hours; each request has a time-out of its own.
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.session.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have something done there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for it."""
        return self.submit(work).result()

    def close(self) -> None:
        """Close connections and end the thread. Calling it twice does no harm."""
        if self._thread.is_alive():
            self.call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
