"""Tensors in a folder through torch.distributed.checkpoint: one safetensors file a rank, plain headers, no pickle.

Files are written tensor by tensor, so that nothing is held twice, and synced before anybody is told that they are there.
DCP's own reader for such files finds every rank's parts of a tensor in their headers, for any number of ranks.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from rlvr_lightning.errors import CheckpointError

# As safetensors names them.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Written:
    """A rank's file, and how long it is [bytes]."""

    file: str
    size: int


class ShardWriter(HuggingFaceStorageWriter):
    """Writes this rank's part of every tensor into one file.

    Args:
        folder: of the files; rank 0 makes it, empty.
        prepare: called on rank 0 before any rank writes.
        finish: called on rank 0 with every file, after all ranks have written and synced theirs.
    """

    def __init__(self, folder: Path, prepare: Callable[[], None], finish: Callable[[dict[str, int]], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._prepare, self._finish = folder, prepare, finish

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is: rank 0 makes the folder later, when all have come here."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make room."""
        self._prepare()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and sync this rank's file."""
        results: Future[list[WriteResult]] = Future()
        if not plan.items:
            results.set_result([])
            return results
        path = self._folder / f"rank_{plan.storage_data['shard_index'] - 1:05}.safetensors"
        # The widest elements first: every tensor then begins where its element size divides the offset.
        items = sorted(plan.items, key=lambda item: -_chunk(item).dtype.itemsize)
        size = _write_file(path, items, lambda item: planner.resolve_data(item))
        written = Written(path.name, size)
        results.set_result([WriteResult(item.index, _chunk(item).size, written) for item in items])
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """All files are there."""
        self._finish({result.storage_data.file: result.storage_data.size for rank in results for result in rank})


@dataclass(frozen=True)
class _Chunk:
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def _chunk(item: WriteItem) -> _Chunk:
    data = item.tensor_data
    assert data is not None, f"{item.index.fqn} is no tensor"
    return _Chunk(data.properties.dtype, tuple(data.chunk.sizes), tuple(data.chunk.offsets))


def _write_file(path: Path, items: list[WriteItem], resolve: Callable[[WriteItem], Any]) -> int:
    header: dict[str, Any] = {}
    offsets, position = {}, 0
    for item in items:
        chunk, name = _chunk(item), item.index.fqn
        assert name not in header, f"two parts of {name} on one rank"
        end = position + chunk.size
        header[name] = {"dtype": DTYPES[chunk.dtype], "shape": chunk.shape, "data_offsets": [position, end]}
        offsets[name] = {"saved_offsets": chunk.offsets}
        position = end
    header["__metadata__"] = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in items:
            tensor = resolve(item).detach().cpu().contiguous()
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + position


def save_shards(tensors: Mapping[str, Tensor], writer: ShardWriter, group: ProcessGroup | None) -> None:
    """Write every tensor once: sharded ones by the ranks that hold the parts, others by one of the ranks that have them.

    Args:
        tensors: by name; plain ones must be equal on all ranks that name them.
        writer: says where to.
        group: of the ranks, on the CPU; None for one process.

    Raises:
        CheckpointError: some rank could not write.
    """
    _collective("write", lambda: save(dict(tensors), storage_writer=writer, **_alone(group)))


def load_shards(folder: Path, into: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    """Read this rank's part of every tensor, in place, whatever the number of ranks that wrote it.

    Args:
        folder: of the files.
        into: tensors of the saved shapes, sharded in any way or not.
        group: of the ranks, on the CPU; None to read without the others.

    Raises:
        CheckpointError: a tensor is missing or has another shape, or a file cannot be read.
    """
    reader = HuggingFaceStorageReader(str(folder))
    _collective("read", lambda: load(dict(into), storage_reader=reader, **_alone(group)))


def _alone(group: ProcessGroup | None) -> dict[str, Any]:
    return {"process_group": group, "no_dist": group is None}


def _collective(what: str, call: Callable[[], T]) -> T:
    # One process without process groups is what is meant.
    warnings.filterwarnings("ignore", message=r"torch\.distributed is disabled.*")
    try:
        return call()
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        where = f"rank {rank}: " if len(error.failures) > 1 or rank else ""
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise CheckpointError(f"cannot {what} the checkpoint: {where}{line[:300]}") from cause


def saved_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every whole tensor in a folder, from the headers alone.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except Exception as error:  # safetensors raises a kind of its own
        raise CheckpointError(f"cannot read the checkpoint: {folder}: {str(error)[:200]}") from error
    entries: Any = metadata.state_dict_metadata
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in entries.items()}
