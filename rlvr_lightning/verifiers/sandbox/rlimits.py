"""Resource limits alone: a session and, where the judge is root, a user of its own; network and files stay in sight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from rlvr_lightning.verifiers.sandbox.confinement import Confinement
from rlvr_lightning.verifiers.sandbox.folders import new_folder
from rlvr_lightning.verifiers.sandbox.limits import Limits
from rlvr_lightning.verifiers.sandbox.places import command
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
        return start_in_folder(script)


def start_in_folder(script: str, readable: Sequence[str] = (), writable: Sequence[str] = ()) -> Session:
    """Start a script in a folder of its own.

    Args:
        script: Python.
        readable, writable: beside the folder, all that its programs may see; none: everything.

    Raises:
        VerifierError: it cannot be started.
    """
    uid = fresh_uid()
    folder = new_folder()
    if uid is not None:
        os.chown(folder, uid, uid)
    confinement = Confinement(
        uid,
        0 if uid is None else needed_capabilities(),
        landlock=bool(readable),
        seccomp=bool(readable),
        readable=tuple(readable),
        writable=(*writable, str(folder)),
    )
    return Session(command(script), folder, confinement)
