"""Who a program runs as: a user of its own where the judge is root."""

from __future__ import annotations

import itertools
import os
import sys
from functools import cache
from pathlib import Path

FIRST_UID, PER_PROCESS = 0x50000000, 512
# CAP_DAC_READ_SEARCH
READ_ANY_FILE = 1 << 2
_counter = itertools.count()


@cache
def _mapped_ids() -> int:
    """How many user ids there are from 0 on."""
    return max(
        int(line.split()[0]) + int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()
    )


def uids_of_this_process() -> range:
    """User ids for candidates of this process; another process has others, except in a namespace of few."""
    large = FIRST_UID + os.getpid() % 2**18 * PER_PROCESS
    if _mapped_ids() >= large + PER_PROCESS:
        return range(large, large + PER_PROCESS)
    small = 20_000 + os.getpid() * PER_PROCESS % 40_000
    return range(small, small + PER_PROCESS)


def fresh_uid() -> int | None:
    """A user id no other sandbox of this process has now, as the one after it; None where the judge is not root."""
    if os.geteuid() != 0:
        return None
    return uids_of_this_process()[2 * next(_counter) % PER_PROCESS]


@cache
def library_is_readable() -> bool:
    """Whether any user may read the interpreter's library."""
    folder = Path(sys.base_prefix).resolve()
    return all(part.stat().st_mode & 0o5 == 0o5 for part in (folder, *folder.parents))


def needed_capabilities() -> int:
    """What a program that is another user needs to read the interpreter's library."""
    return 0 if library_is_readable() else READ_ANY_FILE
