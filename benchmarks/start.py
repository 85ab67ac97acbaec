"""From the command to the first response that is asked for."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.page import Table

NOTE = """Seconds from the start of the command until the engine is asked for its first response, with the bundled model; and until
`--help` is on the screen."""


def measure(folder: Path, rounds: int) -> Table:
    """Each command again and again."""
    ways = {"fit engine=transformers": ["fit", "engine=transformers"], "fit engine=vllm": ["fit", "engine=vllm"]}
    rows = []
    for name, arguments in {**ways, "--help": ["--help"]}.items():
        times = [_seconds(arguments) for _ in range(rounds + 1)][1:]
        rows.append([f"`{name}`", f"{statistics.median(times):.2f}"])
    return Table("start", "Start-up", NOTE, ("command", "seconds"), rows)


def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "rlvr_lightning"] if "--help" in arguments else [sys.executable, "-m", __name__]
    with tempfile.TemporaryDirectory() as folder:
        more = [] if "--help" in arguments else [f"output_dir={folder}", "trainer.accelerator=cpu"]
        subprocess.run([*command, *arguments, *more], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    """The command line, ended when the first response is asked for."""
    from rlvr_lightning.rollout.synced import SyncedEngine

    def stream(self: Any, *args: Any) -> Any:
        os._exit(0)

    SyncedEngine.stream = stream  # type: ignore[method-assign]
    from rlvr_lightning.cli.main import main as command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
