"""Weights from a folder's safetensors files straight into the shards of a model that was built without any.

A model is built on the meta device, shared out over the ranks, and only then filled: a rank reads the rows of each weight
it keeps, and no rank ever holds the whole model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlvr_lightning.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlvr_lightning.models.source import ModelSource

log = logging.getLogger(__name__)

# Numbers of each weight that go into a fingerprint.
SAMPLE = 8
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Files:
    """The tensors of a model folder, or of a hub name, by their names in its safetensors files.

    Args:
        folder: as `ModelSource.folder` gives it; a hub's files come through the libraries' own cache.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @cached_property
    def places(self) -> dict[str, Path]:
        """Which file holds a tensor; empty where there are no safetensors files."""
        from safetensors import SafetensorError, safe_open

        index = self._file(INDEX)
        if index is not None:
            of_file = {name: self._file(name) for name in set(json.loads(index.read_text())["weight_map"].values())}
            files = [file for file in of_file.values() if file is not None]
            if len(files) < len(of_file):
                absent = sorted(name for name, file in of_file.items() if file is None)
                raise ModelError(f"{self.folder} lacks {absent[0]}, which its {INDEX} names")
        else:
            single = self._file(SINGLE)
            files = [] if single is None else [single]
        found = {}
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    found.update(dict.fromkeys(opened.keys(), file))
            except SafetensorError as error:
                raise ModelError(f"{file} is no readable safetensors file: {error}") from error
        return found

    def _file(self, name: str) -> Path | None:
        from transformers.utils import cached_file

        found = cached_file(self.folder, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, from its file's header."""
        from safetensors import safe_open

        with safe_open(self.places[name], "pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor in float32, in memory of their own; a tensor without dimensions is read whole."""
        from safetensors import safe_open

        # Opened for each tensor: pages of an open file that were read stay in the process's memory.
        with safe_open(self.places[name], "pt") as opened:
            part = opened.get_slice(name)
            held: Tensor = part[rows] if part.get_shape() else opened.get_tensor(name)
            return held.to(torch.float32, copy=True)


def build(source: ModelSource) -> tuple[PreTrainedModel, Files | None]:
    """The source's model in evaluation mode, and the files its weights are to be read from.

    Returns:
        A model without weights (on the meta device; buffers are computed), and its files. Where the files are not
        safetensors, or hold tensors under other names or shapes than the model's, the model with its weights and None.
    """
    files = Files(source.folder)
    if files.places:
        model = source.build()
        reason = _mismatch(model, files)
        if reason is None:
            return model.eval(), files
    else:
        reason = "has no safetensors files"
    log.info("model.path=%s %s: every rank loads the whole model before it is shared out", source.path, reason)
    return source.load().eval(), None


def _mismatch(model: PreTrainedModel, files: Files) -> str | None:
    """What of the model the files cannot fill by name."""
    for name, tensor in _to_read(model):
        if name not in files.places:
            return f"holds no tensor {name}"
        if files.shape(name) != tuple(tensor.shape):
            return f"holds {name} in another shape"
    return None


def _to_read(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, tied ones once, and the buffers that belong to a checkpoint."""
    kept = model.state_dict(keep_vars=True)
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    return [*model.named_parameters(), *buffers]


def fingerprint(model: nn.Module, files: Files | None) -> str:
    """A short hash of the model's shapes and of a sample of its weights, to recognise it at resume.

    Args:
        model: as `build` gives it, without adapters and not yet sharded.
        files: its weights are read from; None where it has them.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        rows = slice(0, -(-SAMPLE * len(parameter) // parameter.numel()))
        first = parameter.detach()[rows] if files is None else files.read(name, rows)
        digest.update(first.flatten()[:SAMPLE].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fill(model: nn.Module, files: Files, device: torch.device, name_of: Callable[[str], str | None]) -> None:
    """Read what this rank keeps of each weight.

    Args:
        model: built without weights, sharded or not.
        files: they come from.
        device: they go to, one by one.
        name_of: a parameter's name to its name in the files; None leaves it as it is.
    """
    filled: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        stored = name_of(name)
        if stored is not None:
            filled[id(parameter)] = local_parameter(parameter, _reader(files, stored), device)
    exchange(model, filled)
    kept = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        stored = name_of(name) if name in kept else None
        if stored is not None:
            buffer.copy_(files.read(stored, slice(None)))


def _reader(files: Files, name: str) -> Callable[[slice], Tensor]:
    return lambda rows: files.read(name, rows)


def local_parameter(parameter: nn.Parameter, read: Callable[[slice], Tensor], device: torch.device) -> nn.Parameter:
    """A parameter of the same sharding with this rank's rows, as `read` gives them."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    value: Tensor
    sharded = parameter.data
    if isinstance(sharded, DTensor):
        mesh, placements, shape = sharded.device_mesh, sharded.placements, sharded.shape
        local, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
        # A rank past the last row keeps none; its place is nowhere.
        rows = slice(offset[0], offset[0] + local[0]) if local[0] else slice(0, 0)
        value = DTensor.from_local(
            read(rows).to(device), mesh, placements, run_check=False, shape=shape, stride=sharded.stride()
        )
    else:
        value = read(slice(None)).to(device)
    return nn.Parameter(value, requires_grad=parameter.requires_grad)


def exchange(model: nn.Module, new: dict[int, nn.Parameter]) -> None:
    """Put new parameters in the places of old ones, by their `id`; tied ones stay tied."""
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None and id(held) in new:
                module._parameters[name] = new[id(held)]
