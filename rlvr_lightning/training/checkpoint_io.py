"""Checkpoints on disk: `step_00000016/` with tensors in `weights/` and plain data in `state.json`.

A folder is written beside its place under another name, synced and then renamed, so that what bears the name is whole;
`state.json` holds the length of every file, so that what lost a part of itself later is recognised all the same.
Nothing here knows a trainer, and nothing read here is ever unpickled.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from rlvr_lightning.errors import CheckpointError
from rlvr_lightning.rollout.files import sync_folder, write_whole
from rlvr_lightning.training.plain import plain, unplain
from rlvr_lightning.training.shards import ShardWriter, load_shards, save_shards

log = logging.getLogger(__name__)

FORMAT = 1
STATE, WEIGHTS, BEST = "state.json", "weights", "best.json"


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"step_{step:08}"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps before a checkpoint."""
    return int(checkpoint.name.rpartition("_")[2])


def write(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], group: ProcessGroup | None = None
) -> Path:
    """Write a checkpoint; every rank of `group` must call it.

    Args:
        folder: of the run's checkpoints.
        step: optimizer steps so far.
        tensors: by name; of sharded ones each rank writes its part.
        state: plain data; rank 0's is written.
        group: of the ranks, on the CPU; None for one process.

    Returns:
        The checkpoint, complete.

    Raises:
        CheckpointError: it could not be written; what was there before is as it was.
    """
    target, partial = step_folder(folder, step), folder / f".step_{step:08}.partial"
    text = json.dumps(plain(state), allow_nan=False)

    def prepare() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / WEIGHTS).mkdir(parents=True)

    def finish(sizes: dict[str, int]) -> None:
        files = {f"{WEIGHTS}/{name}": size for name, size in sorted(sizes.items())}
        head = json.dumps({"format": FORMAT, "step": step, "files": files})
        write_whole(partial / STATE, f'{head[:-1]}, "state": {text}}}\n'.encode())
        sync_folder(partial / WEIGHTS)
        shutil.rmtree(target, ignore_errors=True)  # a torn one: the run went on from one before it
        partial.rename(target)
        sync_folder(folder)

    try:
        save_shards(tensors, ShardWriter(partial / WEIGHTS, prepare, finish), group)
    except CheckpointError:
        if group is None or group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        raise
    return target


class Writing(threading.Thread):
    """`write` under way in a thread of its own.

    It is done when the thread is gone, its copy of the tensors with it: freeing tensors lets other threads run, and a
    thread still at it when the interpreter ends takes the whole process down (SIGABRT). So the interpreter waits for a
    single process's thread; one of several ranks might be in a collective that the others have left, and is not waited
    for: what it has not finished is a torn checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        group: ProcessGroup | None,
    ) -> None:
        super().__init__(name=f"checkpoint_{step}", daemon=group is not None)
        self._work: tuple[Any, ...] | None = (folder, step, tensors, state, group)
        self._path: Path | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Write; an error is kept for whoever asks for the result."""
        work, self._work = self._work, None
        assert work is not None
        try:
            self._path = write(*work)
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self._error = error

    def done(self) -> bool:
        """Whether it has ended, one way or the other."""
        return not self.is_alive()

    def result(self) -> Path:
        """The checkpoint, when it is complete.

        Raises:
            CheckpointError: it could not be written.
        """
        self.join()
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path


def begin(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], group: ProcessGroup | None = None
) -> Writing:
    """`write` in a thread of its own, from a copy in host memory: the tensors may change as soon as this returns.

    `group` must be used by nothing else until the result is there.
    """
    state = copy.deepcopy(dict(state))
    stager = DefaultStager(StagingOptions(False, False, False, False))
    staged: Any = stager.stage(dict(tensors))
    stager.close()
    writing = Writing(folder, step, staged, state, group)
    writing.start()
    return writing


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a folder that are whole, the newest last; a warning names each that is not."""
    found = []
    for path in sorted(folder.glob("step_*"), key=lambda item: item.name):
        flaw = _flaw(path)
        if flaw is None:
            found.append(path)
        else:
            log.warning("%s is passed over: %s", path, flaw)
    for path in sorted(folder.glob(".step_*.partial")):
        log.warning("%s is passed over: it was never finished", path)
    return found


def newest(folder: Path) -> Path:
    """The newest whole checkpoint of a folder.

    Raises:
        CheckpointError: there is none.
    """
    found = complete(folder)
    if found:
        return found[-1]
    if (folder / "last.ckpt").is_file():
        raise CheckpointError(
            f"{folder / 'last.ckpt'} was written by an older version, which pickled its checkpoints: go on with that "
            "version, or train anew"
        )
    raise CheckpointError(f"there is no complete checkpoint in {folder}")


def chosen(folder: Path, which: str) -> Path:
    """`best` or `last` of a folder, or another checkpoint by its path.

    Raises:
        CheckpointError: there is none.
    """
    if which == "last":
        return newest(folder)
    if which == "best":
        newest(folder)  # says what is wrong where nothing is there at all
        best = read_best(folder)
        if best is None:
            raise CheckpointError(f"{folder} has no best checkpoint: export.checkpoint=last takes the newest")
        return best[0]
    path = Path(which).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"export.checkpoint must be best, last or a checkpoint's folder; there is no {path}")
    return path


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain data of a checkpoint.

    Raises:
        CheckpointError: it is not whole, or not one of ours.
    """
    flaw = _flaw(checkpoint)
    if flaw is not None:
        raise CheckpointError(f"{checkpoint} is no readable checkpoint: {flaw}")
    state: dict[str, Any] = unplain(json.loads((checkpoint / STATE).read_text())["state"])
    return state


def read_tensors(checkpoint: Path, into: Mapping[str, Tensor], group: ProcessGroup | None = None) -> None:
    """Read tensors in place: of sharded ones each rank its part, whatever the number of ranks that wrote them.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or cannot be read.
    """
    try:
        load_shards(checkpoint / WEIGHTS, into, group)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def drop(folder: Path, keep: set[Path]) -> None:
    """Remove all checkpoints but those; one that is half removed bears no checkpoint's name."""
    for path in folder.glob("step_*"):
        if path not in keep:
            path.rename(folder / f".{path.name}.partial")
    for path in folder.glob(".step_*.partial"):
        shutil.rmtree(path)


def write_best(folder: Path, step: int, score: float) -> None:
    """Name the best checkpoint; a reader sees the old one or the new one."""
    write_whole(folder / BEST, (json.dumps({"step": step, "avg_at_k": score}) + "\n").encode())


def read_best(folder: Path) -> tuple[Path, float] | None:
    """The best checkpoint and its avg@k; None where none was measured, or it is not whole."""
    try:
        held = json.loads((folder / BEST).read_text())
        path, score = step_folder(folder, held["step"]), float(held["avg_at_k"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (path, score) if path.is_dir() and _flaw(path) is None else None


def _flaw(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, cheaply: no tensor is read."""
    try:
        held = json.loads((checkpoint / STATE).read_text())
        if held["format"] != FORMAT:
            return f"its format is {held['format']}, this version reads {FORMAT}"
        files: dict[str, int] = held["files"]
        held["state"]
        for name, size in files.items():
            actual = (checkpoint / name).stat().st_size
            if actual != size:
                return f"{name} has {actual} of {size} bytes"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} or a file it names cannot be read ({type(error).__name__}: {str(error)[:120]})"
    return None
