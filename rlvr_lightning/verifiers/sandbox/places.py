"""What a program must see of this machine: an interpreter and its libraries."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return str(Path(sys.executable).resolve())


def command(script: str) -> list[str]:
    """Runs a script by an interpreter that knows the standard library alone."""
    return [interpreter(), "-I", "-S", "-B", "-c", script]


def libraries() -> list[str]:
    """Folders of installed packages, which programs may import."""
    return list(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))


def readable() -> tuple[str, ...]:
    """Everything a program may read."""
    return (*SYSTEM, sys.base_prefix, *libraries())
