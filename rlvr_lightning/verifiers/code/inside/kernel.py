"""Landlock (landlock(7)) and seccomp (seccomp(2)): files, sockets and system calls a process can do without, denied for good.

Written out against the kernel's interface: what a sandboxed process imports must not be looked for in packages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
# By version of the interface: rights of files that exist.
RIGHTS = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 4: 2**15 - 1, 5: 2**16 - 1}
# Bind and connect, from version 4 on; abstract sockets of others and signals to others, from version 6 on.
NETWORK, SCOPES = 3, 3

PR_SET_SECCOMP, MODE_FILTER = 22, 2
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, DENY = 0x7FFF0000, 0x80000000, 0x00050000
# Flags of clone(2) that make namespaces.
NAMESPACES = 0x7E020080
# socket; ptrace, process_vm_*, kcmp, pidfd_getfd; mount and its kin, chroot, pivot_root, unshare, setns; bpf, perf, keys,
# io_uring, userfaultfd; System V and POSIX messages; handles, modules, kexec, syslog, swap, reboot; and modes, owners, times
# and attributes of files, which Landlock does not know.
_X86_64 = """
41 101 310 311 312 438 165 166 161 155 272 308 428 429 430 431 432 433 442
321 298 248 249 250 425 323 29 64 68 240 303 304 175 313 176 246 320 103 167 168 169
90 91 268 452 92 93 94 260 132 235 261 280 188 189 190 197 198 199
"""
_AARCH64 = """
198 117 270 271 272 438 40 39 51 41 97 268 428 429 430 431 432 433 442
280 241 217 218 219 425 282 194 190 186 180 264 265 105 273 106 104 294 116 224 225 142
52 53 54 55 452 88 5 6 7 14 15 16
"""
CLONE3 = 435
# Machine: its audit number, `clone`, and what is denied.
MACHINES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, 56, tuple(map(int, _X86_64.split()))),
    "aarch64": (0xC00000B7, 220, tuple(map(int, _AARCH64.split()))),
}


def landlock_version() -> int:
    """Of the interface; 0 where the kernel has none."""
    return max(0, int(_LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)))


def _call(number: int, *args: object) -> int:
    result = int(_LIBC.syscall(number, *args))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def confine_files(readable: Sequence[str], writable: Sequence[str]) -> None:
    """From now on nothing but these files and folders, and where the kernel can, no network and no signals to others.

    Args:
        readable: may be read and run.
        writable: may be changed too.

    Raises:
        OSError: the kernel has no Landlock, or refuses.
    """
    version = landlock_version()
    if version == 0:
        raise OSError(errno.EOPNOTSUPP, "landlock")
    handled = RIGHTS[min(version, max(RIGHTS))]
    attributes = struct.pack("=QQQ", handled, NETWORK, SCOPES)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, rights in ((readable, EXECUTE | READ_FILE | READ_DIR), (writable, handled)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            allowed = rights & handled & (2**64 - 1 if os.path.isdir(path) else OF_FILES)  # noqa: PTH112 - as above
            _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", allowed, fd), 0)
            os.close(fd)
    _call(RESTRICT_SELF, rules, 0)
    os.close(rules)


def deny_system_calls() -> None:
    """From now on no new sockets, no looking into other processes, no namespaces, nothing for administrators.

    Raises:
        OSError: the kernel refuses, or the machine is not known.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(errno.EOPNOTSUPP, f"seccomp on {machine}")
    audit, clone, denied = MACHINES[machine]
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    # Calls of the other personality of x86 have this bit.
    program += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, DENY | errno.EPERM)]
    for number in denied:
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENY | errno.EPERM)]
    # The library falls back from clone3, whose flags cannot be seen here, to clone.
    program += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, DENY | errno.ENOSYS)]
    program += [(EQUAL, 0, 3, clone), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NAMESPACES), (RETURN, 0, 0, DENY | errno.EPERM)]
    program += [(RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    if _LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(MODE_FILTER), described, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
