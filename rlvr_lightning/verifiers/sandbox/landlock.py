"""Landlock and seccomp by the kernel: no file but the interpreter's and a folder of its own, no sockets, no namespaces."""

from __future__ import annotations

import os
from typing import ClassVar

from rlvr_lightning.errors import HardwareError
from rlvr_lightning.verifiers.code.inside.kernel import MACHINES, landlock_version
from rlvr_lightning.verifiers.sandbox.limits import Limits
from rlvr_lightning.verifiers.sandbox.places import DEVICES, readable
from rlvr_lightning.verifiers.sandbox.rlimits import start_in_folder
from rlvr_lightning.verifiers.sandbox.session import Session

# From this version on Landlock keeps a program from signals to others; before, only a user of its own does.
SIGNALS_VERSION = 6


class Landlock:
    """The second strongest confinement; it works where namespaces are not allowed."""

    strength: ClassVar[str] = "landlock"
    warning: ClassVar[str | None] = None

    def start(self, script: str, limits: Limits) -> Session:
        """Start a script; see `Bubblewrap.start`.

        Raises:
            HardwareError: the kernel cannot do it.
        """
        del limits  # all of them are the script's to set
        version, least = landlock_version(), 1 if os.geteuid() == 0 else SIGNALS_VERSION
        if version < least:
            raise HardwareError(f"the kernel's Landlock has version {version}, {least} is needed")
        if os.uname().machine not in MACHINES:
            raise HardwareError(f"system calls of {os.uname().machine} are not known")
        return start_in_folder(script, readable=(*readable(), *DEVICES), writable=("/dev/null",))
