"""Runs a vLLM server for as long as the process that asked for it lives: `python launch.py ARGUMENTS`.

Standard input is a pipe of that process, which ends with it, however it ends. The server and whatever it starts are one
process group, which is ended as a whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

# A server is given to end by itself [seconds].
GRACE_S = 10.0


def main(arguments: list[str]) -> int:
    """Start the server, wait for its end or the parent's."""
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *arguments], stdin=subprocess.DEVNULL
    )

    def end(number: int = 0, frame: FrameType | None = None) -> None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def watch() -> None:
        sys.stdin.buffer.read()
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    # What it started may have outlived it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
