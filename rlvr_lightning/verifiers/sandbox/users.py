"""Who a program runs as: a user of its own where the judge is root."""

from __future__ import annotations

import itertools
import os
import sys
from functools import cache
from pathlib import Path

# CAP_DAC_READ_SEARCH
READ_ANY_FILE = 1 << 2
_counter = itertools.count()


@cache
def _mapped_ids() -> int:
    """How many user ids there are from 0 on."""
    return max(
        int(line.split()[0]) + int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()
    )


def fresh_uid() -> int | None:
    """An unused user id, and the one after it; None where the judge is not root and cannot become another.

    Two judges at the same moment have different ones: ids go by process and count.
    """
    if os.geteuid() != 0:
        return None
    count = next(_counter) % 256
    number = 2 * ((os.getpid() % 2**18) * 256 + count)
    large = 0x50000000
    return large + number if _mapped_ids() > large + number + 1 else 20_000 + number % 40_000


@cache
def library_is_readable() -> bool:
    """Whether any user may read the interpreter's library."""
    folder = Path(sys.base_prefix).resolve()
    return all(part.stat().st_mode & 0o5 == 0o5 for part in (folder, *folder.parents))


def needed_capabilities() -> int:
    """What a program that is another user needs to read the interpreter's library."""
    return 0 if library_is_readable() else READ_ANY_FILE
