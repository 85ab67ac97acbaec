"""Giving rights away: limits, another user, no capabilities. What is given away cannot be had back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import time
from typing import Any

from rlvr_lightning.verifiers.code.inside import kernel

PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 8, 36, 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITIES_V3 = 0x20080522
PAUSE_SECONDS = 0.001
_LIBC = ctypes.CDLL(None, use_errno=True)


def control(option: int, value: int) -> None:
    """`prctl(2)`.

    Raises:
        OSError: the kernel refuses.
    """
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def keep_only(capabilities: int) -> None:
    """Give every capability away but these (a bit each)."""
    header = struct.pack("=Ii", CAPABILITIES_V3, 0)
    data = struct.pack("=6I", capabilities, capabilities, 0, 0, 0, 0)
    if _LIBC.syscall(SYS_CAPSET[os.uname().machine], header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def become(uid: int | None, confinement: dict[str, Any]) -> None:
    """Become another user and give rights away.

    Args:
        uid: who, or None to stay.
        confinement: `capabilities` that are kept; with `landlock` only `readable` and `writable` files exist from now
            on; with `seccomp` system calls no program needs are denied.
    """
    control(PR_SET_NO_NEW_PRIVS, 1)
    if confinement["landlock"]:
        kernel.confine_files(confinement["readable"], confinement["writable"])
    if uid is not None:
        control(PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        keep_only(confinement["capabilities"])
    # Nobody of the same user may look into this process's memory or its open files.
    control(PR_SET_DUMPABLE, 0)
    if confinement["seccomp"]:
        kernel.deny_system_calls()


def threads_of_others() -> int:
    """Threads this user has already; they count against its limit where it is shared with the judge."""
    if os.getpid() == 1 or os.getuid() == 0:
        return 0
    total = 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes as long to import as a program to run
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():  # noqa: PTH116
                total += len(os.listdir(f"/proc/{name}/task"))  # noqa: PTH208
        except OSError:
            continue
    return total


def limit(limits: dict[str, Any], seconds: float, others: int) -> None:
    """Set the limits of this process and its children.

    Args:
        others: threads the user has already.
        limits: `memory` of a process [bytes], `processes`, `files` (open ones), `file_size` [bytes].
        seconds: of CPU.
    """
    cpu = int(seconds) + 2
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_NPROC, limits["processes"] + others),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_FSIZE, limits["file_size"]),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def parents() -> dict[int, int]:
    """Every process that is seen and its parent."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes as long to import as a program to run
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    return found


def _signal_all(uid: int | None) -> None:
    """SIGKILL to everything the program started."""
    if os.getpid() == 1:
        os.kill(-1, signal.SIGKILL)
    elif uid is not None:
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(uid, uid, uid)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    for process, parent in parents().items():
        if parent == os.getpid():
            os.kill(process, signal.SIGKILL)


def sweep(uid: int | None) -> None:
    """End everything the program started, daemons included, and wait until it is gone.

    Orphans become children of this process: it is the first of its process namespace, or their subreaper.

    Args:
        uid: the program's user where it is its own.
    """
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        with contextlib.suppress(ProcessLookupError):
            _signal_all(uid)
        # Not waited for without an end: an orphan may have come here after the signal.
        time.sleep(PAUSE_SECONDS)
