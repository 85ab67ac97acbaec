"""One failure: the first error of a run is shown with its rank, and no rank waits for one that is gone.

A rank that fails tells the others at once (`watch.py`): whoever waits for it in a collective hangs inside C++ code, where
no exception reaches it, so that such a process is ended, not asked. With one process all of this stays away.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rlvr_lightning.errors import RLVRError

FILE = "failure.txt"
# Longer messages and tracebacks are cut [characters].
LONGEST = 20_000
# Output that nobody reads cannot be flushed: a process that must end does not wait longer for it [seconds].
FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class Failure:
    """What went wrong, and where.

    Args:
        rank: of the process.
        host: its machine.
        message: one line.
        details: the traceback; empty where the message says all.
    """

    rank: int
    host: str
    message: str
    details: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """An exception of this process; an error addressed to the user needs no traceback."""
        if isinstance(error, RLVRError):
            return cls(rank, socket.gethostname(), " ".join(str(error).split())[:LONGEST])
        first = (str(error).strip().splitlines() or [""])[0]
        trace = "".join(traceback.format_exception(error))
        return cls(rank, socket.gethostname(), f"{type(error).__name__}: {first}"[:LONGEST], trace[-LONGEST:].rstrip())

    @property
    def text(self) -> str:
        """The line with the rank, and the traceback below it."""
        line = f"error on rank {self.rank} ({self.host}): {self.message}"
        return f"{line}\n{self.details}".rstrip() + "\n"

    def packed(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def show(self, folder: Path | None) -> None:
        """On the terminal, and in `failure.txt` where the run's folder exists."""
        # A live line may be open there, and its cursor hidden.
        clear = "\n\x1b[?25h" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{clear}{self.text}")
        sys.stderr.flush()
        self.write(folder)

    def write(self, folder: Path | None) -> None:
        """`failure.txt`, with the time; the disk itself may be what failed, which is then said on the terminal."""
        if folder is None or not folder.is_dir():
            return
        try:
            (folder / FILE).write_text(f"{datetime.now().astimezone().isoformat(timespec='seconds')}\n{self.text}")
        except OSError as error:
            sys.stderr.write(f"({folder / FILE} cannot be written: {error})\n")


def end_process(code: int) -> NoReturn:
    """End this process now, whatever its main thread waits for."""
    flusher = threading.Thread(target=_flush, daemon=True)
    flusher.start()
    flusher.join(FLUSH_SECONDS)
    os._exit(code)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
