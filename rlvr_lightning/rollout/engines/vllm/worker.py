"""Our part of vLLM's workers: weights through files in shared memory, and sums that tell whose weights they hold.

vLLM imports this module in each of its workers (`worker_extension_cls`), also in those of a server on another machine,
which needs this package for it. It is the only module here that imports vLLM when it is imported.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlvr_lightning.rollout.weight_sums import total

BACKEND = "rlvr_files"
# In the name of a weight that adapters stand beside.
BESIDE = ".base_layer."
# What vLLM counts adapters from.
FIRST = 1


@dataclass
class NoInit(WeightTransferInitInfo):
    """Files need no introduction."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """Tensors one after another in a file.

    Args:
        path: of the file, which this machine sees.
        names: of the Hugging Face checkpoint.
        dtypes: such as `float32`.
        shapes: of each.
        last: whether these are the last ones of the update.
        total: tensors of the whole update.
    """

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    last: bool
    total: int


class FileTransfer(WeightTransferEngine[NoInit, FileUpdate]):
    """Reads weights from files that the trainer writes beside it, bucket by bucket."""

    init_info_cls = NoInit
    update_info_cls = FileUpdate
    _received = 0

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to agree on."""

    def start_weight_update(self) -> None:
        """Get ready to take a checkpoint's tensors layer by layer."""
        self._received = 0
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load a bucket.

        Raises:
            RuntimeError: it is the last one, and tensors are missing.
        """
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load a bucket's tensors, which stay in the file until their layer is whole."""
        self._received += len(update_info.names)
        self.model.load_weights(_mapped(update_info))
        if update_info.last and self._received != update_info.total:
            raise RuntimeError(f"{self._received} of {update_info.total} tensors have arrived")

    def finish_weight_update(self) -> None:
        """Put the tensors into the form they are computed with."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing is held."""


def _mapped(update: FileUpdate) -> Iterator[tuple[str, Tensor]]:
    """Each tensor as a view of the file: vLLM keeps it until all of its layer are there, and the view keeps the file."""
    if not update.names:
        return
    with Path(update.path).open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    offset = 0
    for name, dtype_name, shape in zip(update.names, update.dtypes, update.shapes, strict=True):
        dtype = getattr(torch, dtype_name)
        count = int(torch.Size(shape).numel())
        yield name, torch.frombuffer(held, dtype=dtype, count=count, offset=offset).view(shape)
        offset += count * dtype.itemsize


class WorkerExtension:
    """Methods added to vLLM's workers, for `collective_rpc`."""

    def rlvr_weight_sums(self) -> dict[str, Any]:
        """The sum of each weight, and which of a checkpoint's tensors vLLM has made one of."""
        return weight_sums(cast(Any, self).model_runner.get_model())

    def rlvr_adapter_obstacle(self, rank: int, targets: list[str], seen: str | None = None) -> str:
        """Why this worker cannot take adapters; empty where it can.

        Args:
            rank: the highest.
            targets: last names of the layers they stand beside.
            seen: a file where they will be, of a trainer that may be on another machine.
        """
        manager = getattr(cast(Any, self).model_runner.get_model(), "lora_manager", None)
        if manager is None:
            return "started without --enable-lora"
        if rank > manager.lora_config.max_lora_rank:
            return f"--max-lora-rank is {manager.lora_config.max_lora_rank}, the highest rank {rank}"
        taken = {name.rpartition(".")[2] for name, _ in _adapted(manager)}
        taken |= {part for name in taken for part in manager.packed_modules_mapping.get(name, ())}
        if missing := sorted(set(targets) - taken):
            return f"vLLM has no adapters for {', '.join(missing)} of this model"
        if seen is not None and not Path(seen).is_file():
            return f"{Path(seen).parent} (engine.transfer_folder) is another folder there"
        return ""

    def rlvr_load_adapters(self, folder: str) -> None:
        """Replace the adapters by those in a folder; requests go on to name them as before."""
        from vllm.lora.request import LoRARequest

        runner = cast(Any, self).model_runner
        number = max(runner.list_loras(), default=FIRST)
        runner.add_lora(LoRARequest("adapters", number, folder, load_inplace=True))


def weight_sums(model: torch.nn.Module) -> dict[str, Any]:
    """Sums of the weights a model computes with, by vLLM's names; those it holds in another form are left out."""
    sums = {
        name.replace(BESIDE, "."): total(weight.detach())
        for name, weight in model.named_parameters()
        if weight.numel() and weight.is_floating_point()
    }
    computed = []
    for name, module in model.named_modules():
        # On the CPU what is multiplied with is a packed copy: what it makes of ones is the sum of its weights.
        if hasattr(module, "cpu_linear") and hasattr(module, "input_size"):
            own = f"{name}.weight".replace(BESIDE, ".")
            sums[own] = _of_packed(cast(Any, module))
            computed.append(own)
    sums |= _adapter_sums(getattr(model, "lora_manager", None))
    told = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    packed: dict[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    return {"sums": told, "computed": computed, "packed": {name: list(parts) for name, parts in packed.items()}}


def _adapted(manager: Any) -> list[tuple[str, Any]]:
    """The linear layers that adapters may stand beside. Imported here: vLLM before 0.32 need not have it so."""
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    return [(name, module) for name, module in manager.modules.items() if isinstance(module, BaseLinearLayerWithLoRA)]


def _adapter_sums(manager: Any) -> dict[str, Tensor]:
    """Of the adapters that are computed with; all of them nothing where there are none."""
    if manager is None:
        return {}
    number = max(manager.list_adapters(), default=FIRST)
    slots = [place for place, held in enumerate(manager.lora_index_to_id) if held == number]
    sums: dict[str, Tensor] = {}
    for name, module in _adapted(manager):
        for part, matrices in (("A", module.lora_a_stacked), ("B", module.lora_b_stacked)):
            held = [matrix[slots].sum(dtype=torch.float64) for matrix in matrices]
            sums[f"{name}.lora_{part}.weight"] = torch.stack(held).sum()
    return sums


@torch.no_grad()
def _of_packed(module: Any) -> Tensor:
    width = getattr(module, "input_size_per_partition", module.input_size)
    ones = torch.ones(1, width, dtype=module.params_dtype)
    product: Tensor = module.quant_method.apply(module, ones, bias=None)
    return product.sum(dtype=torch.float64)


def repack_tied_head(model: torch.nn.Module) -> None:
    """Pack the output layer's weights anew.

    On the CPU vLLM multiplies with a packed copy. An output layer tied to the embeddings owns no weight, so reloading
    passes it over and it would go on with the old copy (seen in vLLM 0.32: log-probabilities off by 0.1 and more).
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and isinstance(weight, torch.Tensor) and weight.numel():
            cast(Any, module).quant_method.process_weights_after_loading(module)


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
