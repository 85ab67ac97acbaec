"""An update of all servers at once, during which they hold their requests back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.rollout.engines.vllm.client import AgainError, Server

# Of a call that loads weights [seconds].
UPDATE_S = 600.0


class Update:
    """All weights are replaced.

    Args:
        servers: that take them.
        label: of the new weights.
    """

    def __init__(self, servers: Sequence[Server], label: str) -> None:
        self.servers, self.label = servers, label

    def __enter__(self) -> Update:
        self.everywhere("pause", mode="keep")
        self._begin()
        return self

    def _begin(self) -> None:
        self.everywhere("start_weight_update")

    def _finish(self) -> None:
        self.everywhere("finish_weight_update", {"weight_version": self.label})

    def load(self, update_info: Any) -> None:
        """Have them load what is described."""
        self.everywhere("update_weights", {"update_info": update_info})

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._finish()
            # What is under way computes its prompt and what it has written anew.
            self.everywhere("reset_prefix_cache", reset_running_requests="true")
            self.everywhere("resume")

    def everywhere(self, path: str, payload: Any = None, **params: str) -> None:
        """Call all servers.

        Raises:
            RolloutError: one of them does not do it.
        """
        self.each(lambda server: server.post(path, payload, UPDATE_S, plain=False, **params))

    def each(self, call: Callable[[Server], Awaitable[Any]]) -> None:
        """Do something with all servers at once.

        Raises:
            RolloutError: one of them does not do it.
        """

        async def all_of_them() -> None:
            await asyncio.gather(*map(call, self.servers))

        try:
            self.servers[0].http.call(all_of_them())
        except AgainError as error:
            raise RolloutError(
                f"a server does not take the policy's weights (is it of the same model?): {error}"
            ) from error


class AdapterUpdate(Update):
    """What stands beside the weights is replaced, which stay."""

    def _begin(self) -> None:
        """Nothing is taken apart."""

    def _finish(self) -> None:
        self.everywhere("update_weight_version", {"new_version": self.label})
