"""Resource limits alone: a session and, where the judge is root, a user of its own; network and files stay in sight."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import ClassVar

from rlvr_lightning.verifiers.sandbox.bubblewrap import interpreter
from rlvr_lightning.verifiers.sandbox.limits import Limits
from rlvr_lightning.verifiers.sandbox.session import Session
from rlvr_lightning.verifiers.sandbox.users import fresh_uid, needed_capabilities


class Rlimits:
    """The weakest confinement."""

    strength: ClassVar[str] = "rlimits"
    warning: ClassVar[str | None] = (
        "candidate programs run under resource limits alone: they can read this machine's files, use its network and "
        "leave files behind; install rlvr-lightning[code] for a sandbox"
    )

    def start(self, script: str, limits: Limits) -> Session:
        """Start a script; see `Bubblewrap.start`."""
        del limits  # all of them are the script's to set
        uid = fresh_uid()
        folder = Path(tempfile.mkdtemp(prefix="rlvr_sandbox_"))
        if uid is not None:
            os.chown(folder, uid, uid)
        command = [interpreter(), "-I", "-S", "-B", "-c", script]
        return Session(command, folder, uid, 0 if uid is None else needed_capabilities())
