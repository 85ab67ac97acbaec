"""Folders for candidate programs, where a sandbox brings no disk of its own; those of a killed judge go with the next one."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

from rlvr_lightning.verifiers.sandbox.removing import remove_tree

PREFIX = "rlvr_sandboxes_"


def new_folder() -> Path:
    """An empty folder, to be removed by whoever asks for it."""
    return Path(tempfile.mkdtemp(dir=own_folder()))


@cache
def own_folder() -> Path:
    """This process's, for as long as it lives; it is locked, so that others see that it is in use."""
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_"))
    # Programs that are another user go through it, and see nothing of it.
    folder.chmod(0o711)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    atexit.register(_leave, folder, os.getpid())
    return folder


def remove_abandoned() -> None:
    """Remove the folders of judges that were killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # Another user's, or just removed by another judge.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_uid == os.geteuid():
                    remove_tree(folder)
            except BlockingIOError:  # in use
                continue
            finally:
                os.close(handle)


def _leave(folder: Path, owner: int) -> None:
    # A forked child ends with its parent's list of what to do at the end.
    if os.getpid() == owner and folder.is_dir():
        remove_tree(folder)
