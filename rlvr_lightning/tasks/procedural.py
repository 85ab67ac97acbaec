"""What tasks that make their problems on the fly have in common: distinct ones, and two sets that are apart whatever the seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import TypeVar

from rlvr_lightning.errors import ConfigError

HELD_OUT_SHARE = 0.1
Drawn = TypeVar("Drawn")


def is_held_out(text: str) -> bool:
    """Whether a problem is one to validate on: by a hash of what it asks."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def distinct(
    name: str,
    draw: Callable[[random.Random, int], tuple[str, Drawn]],
    *,
    seed: int,
    count: int,
    held_out: bool,
    larger: str,
) -> list[Drawn]:
    """Problems of one of the two sets.

    Args:
        name: of the task's class.
        draw: a problem of either set and what it asks, given how many there are already.
        seed: of the set.
        count: of problems.
        held_out: which set.
        larger: settings that make more problems.

    Raises:
        ConfigError: there are not so many.
    """
    rng = random.Random(f"{name.lower()}-{seed}-{held_out}")
    found: dict[str, Drawn] = {}
    for _ in range(200 * count + 1000):
        if len(found) == count:
            break
        asked, drawn = draw(rng, len(found))
        if is_held_out(asked) == held_out:
            found.setdefault(asked, drawn)
    if len(found) < count:
        raise ConfigError(
            f"{name} has only about {len(found)} distinct problems of this size; asked for {count}: raise {larger}"
        )
    return list(found.values())
