"""A run that is ended again and again at random moments, and what it must look like all the same."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lives import Life
from training import SMALL, recorded, widest_difference

from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.training.checkpoint_io import complete

# Four optimizer steps a phase, each with a checkpoint; a controller, a reference, validations between.
SETTINGS = (
    *SMALL,
    "conf=archer_controlled",
    "rollout.prompts_per_step=4",
    "rollout.passes=2",
    "trainer.max_epochs=4",
    "trainer.save_every_n_steps=1",
    "task.num_train=100",
)
STEPS = 16
ON_RANKS = {1: (), 2: ("strategy=ddp", "trainer.devices=2")}
FULL_MB, ROOM_MB = 12, 200


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own, where mounting is permitted."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def rollouts(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Every response of every phase, whatever ranks drew it."""
    phases: dict[int, list[dict[str, Any]]] = {}
    for row in recorded(folder):
        phases.setdefault(row["phase"], []).append(row)
    return phases


def books(folder: Path) -> list[dict[str, str]]:
    """The table, but for how fast it went."""
    rows = read_table(folder / "logs" / "metrics.csv")
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, phases and books, to the last bit."""
    assert widest_difference(one, other) == 0
    assert rollouts(one) == rollouts(other)
    assert len(rollouts(one)) == STEPS // 4
    assert books(one) == books(other)
    assert [row["step"] for row in books(one)] == ["0", "4", "8", "12", "16"]
    # A kill after the last checkpoint leaves the last phase's, and the one before, where that one's last checkpoint was still
    # being written when the last phase began.
    left = {path.name for path in (one / "buffers").glob("*buffer_*")}
    assert left <= {f"buffer_{STEPS - 8}", f"buffer_{STEPS - 4}"}


def reached(folder: Path, pattern: str) -> int:
    """The largest step or version in the names of what matches."""
    found = [path.name.removesuffix(".partial").rpartition("_")[2] for path in folder.glob(pattern)]
    return max((int(number) for number in found), default=0)


@dataclass
class Endurance:
    """Ends sessions of runs at random moments until so many were killed.

    Args:
        seed: of the moments.
        folder: for logs and temporary files; a disk of each run's own is mounted below it.
    """

    seed: int
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self, number: int, ranks: int, kills: int, environment: dict[str, str]) -> Path:
        """A run from its beginning to its end, resumed after each of at most `kills` kills, Ctrl-Cs and full disks."""
        disk, kept = self.folder / f"disk_{number}", self.folder / f"run_{number}"
        with small_disk(disk, ROOM_MB) as mounted:
            ends = ["kill", "kill", "kill", "ctrl_c", *(["full_disk"] if mounted else [])]
            before = self.counts["kill"]
            while not self._session(disk / "run", ranks, number, environment, ends):
                if self.counts["kill"] - before >= kills:
                    ends = []
                if mounted:
                    resize(disk, f"{ROOM_MB}m")
            shutil.copytree(disk / "run", kept)
        self.counts["runs"] += 1
        return kept

    def _session(self, run: Path, ranks: int, number: int, environment: dict[str, str], ends: list[str]) -> bool:
        """One session; true where the run has come to its end."""
        begun = run.is_dir() and (run / "config.yaml").exists() and bool(complete(run / "checkpoints"))
        arguments = ["fit", f"resume={run}"] if begun else ["fit", *SETTINGS, f"output_dir={run}"]
        life = Life([*arguments, *ON_RANKS[ranks]], ranks, self.folder / f"said_{number}.txt", environment)
        self.counts["sessions"] += 1
        if not ends:
            return life.wait() == [0] * ranks
        end = self.random.choice(ends)
        life.until(self._moment(run))
        time.sleep(self.random.uniform(0, 0.05))
        if not life.alive:
            return life.wait() == [0] * ranks
        if end == "kill":
            life.send(signal.SIGKILL)
        elif end == "ctrl_c":
            life.send(signal.SIGINT)
        else:
            used = sum(path.stat().st_size for path in run.parent.rglob("*") if path.is_file())
            resize(run.parent, f"{used + self.random.randrange(FULL_MB << 20)}")
        codes = life.wait(120)
        assert None not in codes, f"{end}: a process did not end"
        # One that ended by itself a moment before was not hit.
        if codes != [0] * ranks:
            self.counts[end] += 1
        return codes == [0] * ranks

    def _moment(self, run: Path) -> Callable[[], bool]:
        """When it happens, by what is seen on the disk."""
        step = reached(run / "checkpoints", "step_*") + self.random.randrange(1, 6)
        kind = self.random.choice(["begun", "saved", "saving", "drawn", "drawing"])
        began, wait = time.monotonic(), self.random.uniform(0, 4)
        return {
            "begun": lambda: time.monotonic() - began > wait,
            "saved": lambda: reached(run / "checkpoints", "step_*") >= step,
            "saving": lambda: reached(run / "checkpoints", ".step_*.partial") >= step,
            "drawn": lambda: reached(run / "buffers", "buffer_*") >= step // 4 * 4,
            "drawing": lambda: reached(run / "buffers", ".buffer_*.partial") >= step // 4 * 4,
        }[kind]
