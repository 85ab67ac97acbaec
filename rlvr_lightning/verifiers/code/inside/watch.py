"""How long a program has had: processor time, so that a busy machine does not turn right answers into slow ones."""

from __future__ import annotations

import os
import select
import time

from rlvr_lightning.verifiers.code.inside.wire import Gone

# A program that sleeps, or waits for a processor, has so many times its limit by the clock on the wall.
WALL = 3.0
TICK_SECONDS = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(process: int) -> float:
    """Of a process and those of its children it has waited for; 0 for one that is gone."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123 - pathlib takes long to import
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS


class Watch:
    """The time of one test.

    Args:
        process: whose processor time counts.
        seconds: it has.
        judge: an open file whose other end the judge outside holds.
    """

    def __init__(self, process: int, seconds: float, judge: int) -> None:
        self._process, self._judge = process, judge
        self._most = processor_seconds(process) + seconds
        self.deadline = time.monotonic() + WALL * seconds

    def over(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline or processor_seconds(self._process) > self._most

    def wait(self, *files: int) -> dict[int, int]:
        """Wait until something can be read.

        Returns:
            Files that are ready and what for, as `poll` says.

        Raises:
            Gone: the time is over (`timeout`), or there is no judge any more (`judge`).
        """
        poll = select.poll()
        for fd in files:
            poll.register(fd, select.POLLIN)
        poll.register(self._judge, 0)
        while True:
            ready = dict(poll.poll(TICK_SECONDS * 1000))
            if self._judge in ready:
                raise Gone("judge")
            if self.over():
                raise Gone("timeout")
            if ready:
                return ready
