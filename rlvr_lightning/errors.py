"""Every error the package raises on purpose, each also a kind of the standard library's.

The command line turns an `RLVRError` into one line and exit code 2; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# What shells report of a program ended by SIGINT.
INTERRUPTED = 130


class RLVRError(Exception):
    """Base of all errors addressed to the user: the message says what, where and what to do."""


class ConfigError(RLVRError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(RLVRError, ValueError):
    """A task file or row cannot be used; the message names the file and the line."""


class ModelError(RLVRError, ValueError):
    """A model folder cannot be used: no tokenizer, unknown architecture, non-standard head."""


class CheckpointError(RLVRError, ValueError):
    """A checkpoint is corrupt, or belongs to another run."""


class MissingDependencyError(RLVRError, ImportError):
    """An optional package was asked for and is not installed."""


class HardwareError(RLVRError, RuntimeError):
    """The run needs devices or memory this machine does not have."""


class RolloutError(RLVRError, RuntimeError):
    """A rollout engine failed, or its weights are not the ones asked for."""


class EngineLostError(RolloutError):
    """No engine is left that holds the policy's weights; given them anew, it may go on."""


class VerifierError(RLVRError, RuntimeError):
    """A verifier failed on a response; counted and reported, never a reward."""


class VerifierTimeoutError(VerifierError, TimeoutError):
    """A verifier took too long on a response."""


def nearest(name: str, known: Sequence[str], count: int = 3) -> str:
    """`did you mean ...?` with the closest names, or all of a short list."""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there is {', '.join(sorted(known))}" if 0 < len(known) <= 30 else "see --cfg job for all of them"
