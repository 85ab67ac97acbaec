"""How much a program may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlvr_lightning.errors import ConfigError

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of one run of a program; its time is the verifier's business.

    Args:
        memory_mb: address space of a process [MiB].
        processes: processes and threads.
        open_files: of a process.
        output_mb: written to standard output [MiB].
        disk_mb: of one file, and where the sandbox has a disk of its own, of all of them [MiB].

    Raises:
        ConfigError: a limit leaves nothing.
    """

    memory_mb: int = 1024
    processes: int = 32
    open_files: int = 64
    output_mb: int = 16
    disk_mb: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), {"memory_mb": 64, "open_files": 16, "processes": 2}
            if value < least.get(field.name, 1):
                raise ConfigError(
                    f"verifier.limits.{field.name} must be at least {least.get(field.name, 1)}; got {value}"
                )
