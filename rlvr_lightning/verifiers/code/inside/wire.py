"""Frames on a pipe: eight bytes of length, then so many bytes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import time
from typing import Any

# Of a frame [bytes]; what is longer comes from somebody who means harm.
MAX_FRAME = 2**26


class Gone(BaseException):
    """The other end is gone, too slow, or sends what is no frame. No test's `except Exception` swallows it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def write_frame(fd: int, payload: bytes, deadline: float = math.inf) -> None:
    """Send one frame.

    Args:
        fd: an open file.
        payload: the frame.
        deadline: on the monotonic clock [seconds]; it holds where the file does not block.

    Raises:
        Gone: nobody reads.
    """
    unsent = memoryview(len(payload).to_bytes(8, "little") + payload)
    try:
        while unsent:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [fd], [], None if left == math.inf else left)[1]:
                raise Gone("timeout")
            with contextlib.suppress(BlockingIOError):
                unsent = unsent[os.write(fd, unsent) :]
    except OSError as error:
        raise Gone("ended") from error


def _read_exactly(fd: int, count: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], None if left == math.inf else left)[0]:
            raise Gone("timeout")
        try:
            chunk = os.read(fd, min(count - len(received), 2**20))
        except OSError as error:
            raise Gone("ended") from error
        if not chunk:
            raise Gone("ended")
        received += chunk
    return bytes(received)


def read_frame(fd: int, deadline: float) -> bytes:
    """Receive one frame.

    Args:
        fd: an open file.
        deadline: on the monotonic clock [seconds].

    Raises:
        Gone: too late, too long, or no other end.
    """
    length = int.from_bytes(_read_exactly(fd, 8, deadline), "little")
    if length > MAX_FRAME:
        raise Gone("output")
    return _read_exactly(fd, length, deadline)


def send(fd: int, message: Any, deadline: float = math.inf) -> None:
    """Send a message as JSON; see `write_frame`."""
    write_frame(fd, json.dumps(message).encode(), deadline)


def receive(fd: int, deadline: float = math.inf) -> Any:
    """Receive a message.

    Raises:
        Gone: as `read_frame`, or it is no JSON.
    """
    try:
        return json.loads(read_frame(fd, deadline))
    except (ValueError, RecursionError) as error:
        raise Gone("no message") from error
