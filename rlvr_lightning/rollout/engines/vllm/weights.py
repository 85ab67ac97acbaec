"""How weights reach servers: through files in shared memory or a shared folder, or over vLLM's own NCCL and CUDA IPC.

All of them go through vLLM's weight-transfer calls, one tensor or one bucket at a time: there is never a second whole copy.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.rollout.engines.vllm.client import Server
from rlvr_lightning.rollout.engines.vllm.update import UPDATE_S, Update
from rlvr_lightning.rollout.gathering import is_first_rank

Weights = Iterable[tuple[str, Tensor]]
Transfer = Literal["auto", "files", "nccl", "ipc"]
TRANSFERS = ("auto", "files", "nccl", "ipc")
# Tensors that travel together; a larger one goes alone.
BUCKET_BYTES = 64 * 2**20


@runtime_checkable
class WeightSender(Protocol):
    """Brings the policy's weights to servers."""

    backend: str

    def send(self, weights: Weights, dtype: torch.dtype, servers: Sequence[Server], label: str) -> None:
        """Replace what the servers hold. Every rank must call it; the first one sends.

        Args:
            weights: under the names of the Hugging Face checkpoint; can be gone through more than once.
            dtype: they travel in.
            servers: that are there.
            label: what the servers call them from then on.

        Raises:
            RolloutError: a server does not take them.
        """
        ...


def choose_sender(transfer: Transfer, folder: Path, device: torch.device) -> WeightSender:
    """What suits a device: NCCL for a GPU, files for the CPU."""
    if transfer == "files" or (transfer == "auto" and device.type == "cpu"):
        return FileSender(folder)
    return DeviceSender("nccl" if transfer == "auto" else cast(Any, transfer))


class FileSender:
    """Writes buckets of tensors into files that the servers' workers map.

    Args:
        folder: in shared memory for servers on this machine, else one that all machines see.
    """

    backend = "rlvr_files"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, weights: Weights, dtype: torch.dtype, servers: Sequence[Server], label: str) -> None:
        """See `WeightSender`."""
        if not is_first_rank():
            for _ in weights:  # gathering a sharded weight takes every rank
                pass
            return
        with Update(servers, label) as update:
            bucket = _Bucket(self.folder)
            try:
                for name, weight in weights:
                    bucket.add(name, weight.to(dtype))
                    if bucket.size >= BUCKET_BYTES:
                        update.load(bucket.described())
                        bucket.clear()
                update.load(bucket.described(last=True))
            except OSError as error:
                raise RolloutError(
                    f"weights could not be written for the servers: {error}: see engine.transfer_folder"
                ) from error
            finally:
                bucket.clear()


class _Bucket:
    """Tensors on their way, one after another in a file.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"rlvr_weights_{secrets.token_hex(8)}"
        self.size = self.total = 0
        self._held: list[tuple[str, str, list[int]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor behind the others.

        Raises:
            OSError: there is no room.
        """
        with self.path.open("ab") as file:
            file.write(_raw(tensor))
        self._held.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)))
        self.size += tensor.nbytes
        self.total += 1

    def described(self, *, last: bool = False) -> dict[str, Any]:
        """What the workers are told."""
        names, dtypes, shapes = ([one[i] for one in self._held] for i in range(3))
        told = {"path": str(self.path), "names": names, "dtypes": dtypes, "shapes": shapes}
        return {**told, "last": last, "total": self.total}

    def clear(self) -> None:
        """Begin another one; workers keep what they have mapped."""
        self.path.unlink(missing_ok=True)
        self.size, self._held = 0, []


@dataclass(frozen=True)
class _Described:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Source:
    """The policy's weights as vLLM's senders want them: described first, then gone through.

    Args:
        dtype: they travel in.
        weights: the policy's.
    """

    def __init__(self, dtype: torch.dtype, weights: Weights) -> None:
        self.dtype, self.weights = dtype, weights
        self.described: list[_Described] = []

    def metadata(self) -> list[_Described]:
        """What comes, in its order; names and shapes stay what they are, so that it is looked at once."""
        if not self.described:
            self.described = [_Described(name, self.dtype, tuple(weight.shape)) for name, weight in self.weights]
        return self.described

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.to(self.dtype)) for name, weight in self.weights)


class _Client:
    """Several servers as the one that vLLM's senders talk to."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers, self.label = servers, ""

    def _update(self) -> Update:
        return Update(self.servers, self.label)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Introduce each server's workers, with their places in the group."""
        place = init_info.get("rank_offset")

        async def introduce() -> None:
            calls, offset = [], place
            for server in self.servers:
                mine = init_info if offset is None else {**init_info, "rank_offset": offset}
                calls.append(server.post("init_weight_transfer_engine", {"init_info": mine}, UPDATE_S))
                offset = None if offset is None else offset + (await server.get("get_world_size"))["world_size"]
            await asyncio.gather(*calls)

        self.servers[0].http.call(introduce())

    def start_weight_update(self) -> None:
        """Hold requests back and begin."""
        self._update().__enter__()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load; CUDA IPC handles are pickled, as vLLM's own client does it."""
        from vllm.distributed.weight_transfer.clients import _json_safe_update_payload

        self._update().load(_json_safe_update_payload(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Name the weights and go on."""
        self._update().__exit__(None)


class DeviceSender:
    """From GPU to GPU, by vLLM's own senders.

    Args:
        backend: `nccl` for servers with GPUs of their own, `ipc` for servers on the trainer's GPUs.
    """

    def __init__(self, backend: Literal["nccl", "ipc"]) -> None:
        self.backend: str = backend
        self._engine: Any = None
        self._client: _Client | None = None
        self._source: _Source | None = None

    def send(self, weights: Weights, dtype: torch.dtype, servers: Sequence[Server], label: str) -> None:
        """See `WeightSender`."""
        if self._client is None or list(self._client.servers) != list(servers):
            self._meet(weights, dtype, servers)
        assert self._client is not None
        assert self._source is not None
        self._client.label, self._source.weights = label, weights
        self._engine.send_weights()

    def _meet(self, weights: Weights, dtype: torch.dtype, servers: Sequence[Server]) -> None:
        """Join a group with the servers' workers; anew where a server has been replaced."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self._engine is not None:
            self._engine.shutdown()
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self._client, self._source = _Client(servers), _Source(dtype, weights)
        info: Any
        if self.backend == "ipc":
            info = IPCTrainerInitInfo(rank=rank, packed=True)
        else:
            workers = sum(server.http.call(server.get("get_world_size"))["world_size"] for server in servers)
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = int(probe.getsockname()[1])
            info = NCCLTrainerInitInfo(_address(), port, 1 + workers, rank=rank)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            info, client=self._client, source=cast(Any, self._source)
        )


def _address() -> str:
    """Of this machine, as the servers see it."""
    return os.environ.get("MASTER_ADDR") or socket.gethostbyname(socket.gethostname())


def _raw(tensor: Tensor) -> memoryview:
    """A tensor's bytes."""
    return memoryview(cast(Any, tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()))
