"""Real processes that train, forked from one that has imported everything, and ended in the ways processes end."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["soak_preloaded"])


def _live(arguments: Sequence[str], environment: dict[str, str], said: Path) -> None:
    """A process of its own session: `python -m rlvr_lightning ARGUMENTS`."""
    os.setsid()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from rlvr_lightning.cli.main import main

    sys.argv = [sys.argv[0], *arguments]
    try:
        sys.exit(main(list(arguments)))
    finally:
        # As at the end of any process; a forked one leaves it out.
        atexit._run_exitfuncs()


class Life:
    """A session of a run, on one or more ranks.

    Args:
        arguments: of the command line.
        ranks: processes.
        said: where they write what they say.
        environment: theirs, besides this one's.
    """

    def __init__(self, arguments: Sequence[str], ranks: int, said: Path, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.processes: list[Any] = []
        for rank in range(ranks):
            launched = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = {**environment, **(launched if ranks > 1 else {})}
            process = CONTEXT.Process(target=_live, args=(tuple(arguments), own, said))
            process.start()
            self.processes.append(process)

    @property
    def alive(self) -> bool:
        """Whether a process of it runs."""
        return any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals) -> None:
        """As a terminal does, or a machine that goes down: to all processes."""
        for process in self.processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:  # it has ended, or has not made its session yet
                if process.is_alive():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, number)

    def wait(self, seconds: float = 300) -> list[int | None]:
        """The exit codes."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.1))
        codes = [process.exitcode for process in self.processes]
        self.send(signal.SIGKILL)
        return codes

    def until(self, happened: Callable[[], bool], seconds: float = 300) -> bool:
        """Wait for it; false where the processes ended before."""
        end = time.monotonic() + seconds
        while self.alive and time.monotonic() < end:
            if happened():
                return True
            time.sleep(0.002)
        return happened()
