"""What every kind of sandbox can do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rlvr_lightning.verifiers.sandbox.limits import Limits
from rlvr_lightning.verifiers.sandbox.session import Session


@runtime_checkable
class Sandbox(Protocol):
    """A kind of confinement.

    Args:
        strength: its name.
        warning: what it does not keep a program from, or None.
    """

    @property
    def strength(self) -> str:
        """Its name."""
        ...

    @property
    def warning(self) -> str | None:
        """What it does not keep a program from, or None."""
        ...

    def start(self, script: str, limits: Limits) -> Session:
        """Start a script inside."""
        ...
