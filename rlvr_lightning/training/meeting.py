"""Where the ranks of a run find each other before there is a process group: the store at its address.

Rank 0 opens the store that `init_process_group` will use (torch shares one server between stores of one process); under
torchrun it is the agent's. All it is used for here is the address of rank 0's board (`watch.py`).
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from rlvr_lightning.errors import HardwareError

# A rank that has not come by then will not come: as long as torch waits for the others of a process group [seconds].
ARRIVAL_SECONDS = 1800.0
ATTEMPT_SECONDS = 10.0
# Set by our launcher for the processes it starts: the global rank of local rank 0.
FIRST_RANK = "RLVR_FIRST_RANK"
# A machine that is gone is noticed after IDLE + COUNT x INTERVAL seconds.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 15, 5, 3


@dataclass(frozen=True)
class Meeting:
    """Address of the store, and this process's place.

    Args:
        host: where rank 0 lives.
        port: of the store there.
        rank: this process.
        world: ranks in all.
        parent: process that started this one and must be alive for as long as there is no connection; None for no such.
    """

    host: str
    port: int
    rank: int
    world: int
    parent: int | None = None

    def open_board(self) -> tuple[object, socket.socket, str]:
        """Rank 0: a listening socket announced in the store, and the word that guests must know."""
        local = self.host in ("127.0.0.1", "localhost")
        dual = socket.has_dualstack_ipv6() and not local
        listener = socket.create_server(
            ("127.0.0.1" if local else "", 0),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=max(self.world, 128),
        )
        token = secrets.token_hex(16)
        store = self._store(timedelta(seconds=ARRIVAL_SECONDS))
        store.set(self._key, f"{listener.getsockname()[1]} {token}")
        return store, listener, token

    def find_board(self) -> tuple[socket.socket, str]:
        """A connection to rank 0's board, as soon as it is open, and the word to say there.

        Raises:
            HardwareError: rank 0 did not come in time, or this process's parent is gone.
        """
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            try:
                port, token = self._store(timedelta(seconds=ATTEMPT_SECONDS)).get(self._key).decode().split()
                connection = socket.create_connection((self.host, int(port)), ATTEMPT_SECONDS)
            except (RuntimeError, OSError) as error:  # torch's store errors are RuntimeErrors
                if time.monotonic() > deadline or (self.parent is not None and os.getppid() != self.parent):
                    raise HardwareError(
                        f"rank {self.rank} finds no rank 0 at {self.host}:{self.port}: it is gone, or never came"
                    ) from error
                time.sleep(1.0)
            else:
                keep_alive(connection)
                return connection, token

    @property
    def _key(self) -> str:
        return f"rlvr_failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def _store(self, timeout: timedelta) -> Any:
        import torch.distributed as dist

        agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        return cast(Any, dist).TCPStore(
            self.host,
            self.port,
            self.world,
            self.rank == 0 and not agents,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )


def launched() -> Meeting | None:
    """The meeting of a process that torchrun or our own launcher started as one of several; None for any other."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, parent = int(environment["RANK"]), None
    elif FIRST_RANK in environment:
        rank, parent = int(environment[FIRST_RANK]) + int(environment["LOCAL_RANK"]), os.getppid()
    else:
        return None
    world = int(environment["WORLD_SIZE"])
    if world == 1:
        return None
    return Meeting(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), rank, world, parent)


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out about a machine that is gone; reads and writes block."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "darwin":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, KEEPALIVE_IDLE)
    else:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
