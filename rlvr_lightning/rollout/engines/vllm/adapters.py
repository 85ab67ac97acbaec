"""A policy's adapters as vLLM takes them: beside weights that it has read itself, from a folder as peft writes it.

vLLM holds them as one adapter, which each sync replaces in place: requests under way go on with the new one, as they do where
all weights are replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.version import Version
from torch import Tensor

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.protocols import Adapters, ModelFolder
from rlvr_lightning.rollout.engines.vllm.client import AgainError, MissingError, Server, ServerDownError
from rlvr_lightning.rollout.engines.vllm.installed import vllm_version
from rlvr_lightning.rollout.engines.vllm.update import UPDATE_S, AdapterUpdate
from rlvr_lightning.rollout.gathering import from_all_ranks, is_first_rank

log = logging.getLogger(__name__)

# What requests call them.
NAME = "rlvr_adapters"
Way = Literal["auto", "alone", "merged"]
WAYS = ("auto", "alone", "merged")
# Since then vLLM reads all that is used here.
LEAST = Version("0.32")
# vLLM makes room for one of these ranks; lower ones are padded.
ROOMS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class Offered:
    """An engine that is told what a policy has beside its weights.

    Args:
        way: `alone`, `merged`, or `auto`: alone on a GPU, for which vLLM has kernels for them.

    Raises:
        ConfigError: it is none of these.
    """

    takes_adapters = False
    _offered: Adapters | None = None

    def __init__(self, way: Way) -> None:
        if way not in WAYS:
            raise ConfigError(f"engine.adapters must be one of {', '.join(WAYS)}; got {way!r}")
        self.adapters = way

    def offer(self, adapters: Adapters | None) -> None:
        """What the policy has beside its weights; before the engine is started."""
        self._offered = adapters

    def declined(self, device: torch.device) -> str:
        """Why a policy's adapters are not even tried; empty where they are."""
        if self.adapters == "auto" and device.type == "cpu":
            return "on a CPU vLLM draws slowly with adapters (engine.adapters=alone has them travel alone all the same)"
        return "engine.adapters=merged" if self.adapters == "merged" else ""


def room(rank: int) -> int:
    """The rank that vLLM makes room for."""
    return next(step for step in ROOMS if step >= rank)


def obstacle(adapters: Adapters, source: ModelFolder) -> str:
    """Why the vLLM that is installed could not take a policy's adapters, before it is started; empty where it could."""
    found = vllm_version()
    if adapters.obstacle:
        return adapters.obstacle
    if adapters.rank > ROOMS[-1]:
        return f"vLLM takes ranks up to {ROOMS[-1]}, the highest here is {adapters.rank}"
    if found is not None and found.release < LEAST.release:
        return f"vLLM {found} is older than {LEAST}"
    return _model_obstacle(source)


def _model_obstacle(source: ModelFolder) -> str:
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora

    for name in AutoConfig.from_pretrained(source.folder).architectures or ():
        entry: Any = ModelRegistry.models.get(name)
        if entry is not None and supports_lora(entry.load_model_cls()):
            return ""
    return "vLLM has no adapters for this architecture"


def options(adapters: Adapters) -> dict[str, Any]:
    """Arguments of vLLM that make room for them."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": room(adapters.rank),
        "lora_target_modules": list(adapters.targets),
    }


def settled(adapters: Adapters | None, found: str) -> bool:
    """Do the adapters travel alone? Told once, with the reason where they do not. Every rank must call it.

    Args:
        adapters: the policy's.
        found: what is in the way, as this rank sees it.
    """
    obstacles = [one for one in from_all_ranks([found]) if one]
    if adapters is None:
        return False
    if is_first_rank():
        way = f"are merged with the weights, all of which travel: {obstacles[0]}" if obstacles else "travel alone"
        log.info("after each step the adapters %s", way)
    return not obstacles


@contextlib.contextmanager
def written(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, folder: Path | None) -> Iterator[Path]:
    """A folder with the adapters, which is gone afterwards.

    Args:
        weights: the two matrices of each, the scale in the second.
        dtype: they travel in.
        folder: where it is made; None for the system's temporary folder.

    Raises:
        RolloutError: there is no room.
    """
    from safetensors.torch import save_file

    tensors = {f"base_model.model.{name}": weight.to(dtype).contiguous().cpu() for name, weight in weights}
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
    targets = sorted({name.split(".")[-3] for name in tensors})
    with tempfile.TemporaryDirectory(prefix="rlvr_adapters_", dir=folder) as made:
        try:
            # The scale is alpha by rank: one.
            told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
            (Path(made) / "adapter_config.json").write_text(json.dumps(told))
            save_file(tensors, Path(made) / "adapter_model.safetensors")
        except OSError as error:
            raise RolloutError(
                f"adapters could not be written for vLLM: {error}: see engine.transfer_folder"
            ) from error
        # Workers may be another user's.
        Path(made).chmod(0o755)
        yield Path(made)


class AdapterSender:
    """Brings adapters to servers through a folder that they see.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(
        self, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, servers: Sequence[Server], label: str
    ) -> None:
        """Replace the adapters that servers hold. Every rank must call it; the first one sends.

        Args:
            weights: the two matrices of each adapter.
            dtype: they travel in.
            servers: that are there.
            label: what the servers call the policy from then on.

        Raises:
            RolloutError: a server does not take them.
        """
        if not is_first_rank():
            for _ in weights:  # gathering a sharded weight takes every rank
                pass
            return
        with written(weights, dtype, self.folder) as made, AdapterUpdate(servers, label) as update:
            update.each(lambda server: _load(server, str(made)))


async def _load(server: Server, made: str) -> None:
    """Have a server read the adapters, under a name it is told once."""
    cards = (await server.get("v1/models"))["data"]
    if NAME not in {card["id"] for card in cards}:
        await server.post("v1/load_lora_adapter", {"lora_name": NAME, "lora_path": made}, UPDATE_S, plain=True)
    await server.post("collective_rpc", {"method": "rlvr_load_adapters", "args": [made]}, UPDATE_S)


async def server_obstacle(server: Server, adapters: Adapters, folder: Path) -> str:
    """Why a server that runs could not take a policy's adapters; empty where it can.

    Raises:
        ServerDownError: it does not answer.
    """
    if adapters.obstacle:
        return adapters.obstacle
    try:
        await server.post("v1/load_lora_adapter", {}, plain=True)
    except MissingError:
        return f"{server.url} was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    except ServerDownError:
        raise
    except RolloutError:
        pass  # it is there, and says that nothing was asked
    cards = (await server.get("v1/models"))["data"]
    if any(card.get("parent") and card["id"] != NAME for card in cards):
        return f"{server.url} holds adapters of somebody else's"
    with tempfile.NamedTemporaryFile(prefix="rlvr_adapters_", dir=folder) as seen:
        Path(seen.name).chmod(0o644)
        asked = [adapters.rank, list(adapters.targets), seen.name]
        try:
            answer = await server.post("collective_rpc", {"method": "rlvr_adapter_obstacle", "args": asked})
        except AgainError as error:
            return f"{server.url} cannot be asked for it: {error}"
    found = [told for told in answer["results"] if told]
    return f"{server.url}: {found[0]}" if found else ""
