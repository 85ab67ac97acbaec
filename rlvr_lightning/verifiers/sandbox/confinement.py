"""What the harness in a sandbox must still do to a program's process, beside its limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Confinement:
    """Sent to the harness, which applies it to each process of a program.

    Args:
        uid: the user they become, and the one after it for tests; None: they stay who they are.
        capabilities: they need to read the interpreter's library, a bit each.
        landlock: whether only `readable` and `writable` files exist for them.
        seccomp: whether system calls no program needs are denied.
        readable, writable: files and folders.
    """

    uid: int | None
    capabilities: int = 0
    landlock: bool = False
    seccomp: bool = False
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
