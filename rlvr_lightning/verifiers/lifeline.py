"""A worker process ends with the process that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

LOOK_S = 0.2
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def end_with_parent(*, by_kernel: bool) -> None:
    """Be killed when the parent is gone; a standard input that ends tells only a process that reads.

    Args:
        by_kernel: have Linux do it too, at once and in any state. It goes by the thread that started this process, which
            must live as long as the parent needs it.
    """
    parent = os.getppid()
    if by_kernel and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)
