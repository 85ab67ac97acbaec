"""The servers a run starts for itself, and starts again when they die."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.rollout.engines.vllm.client import Server
from rlvr_lightning.rollout.engines.vllm.http import HttpThread
from rlvr_lightning.rollout.engines.vllm.in_process import EXTENSION
from rlvr_lightning.rollout.engines.vllm.process import ServerProcess
from rlvr_lightning.rollout.engines.vllm.requests import engine_options

PACKAGE_HOME = Path(__file__).parents[4]


@dataclass(frozen=True)
class ServerSettings:
    """See `VLLMServerEngine`."""

    servers: int
    tensor_parallel: int
    port: int
    gpu_memory_utilization: float
    max_num_seqs: int
    enforce_eager: bool
    cpu_kv_cache_gb: int
    start_s: float
    restarts: int
    log_folder: Path


class OwnServers:
    """Servers on this machine.

    Args:
        settings: of the engine.
        model: the folder.
        dtype: of the weights.
        max_length: prompt and response together [tokens].
        device: the trainer's; servers on GPUs take those after the trainers'.
        backend: how weights reach them, by vLLM's name.
        more: arguments of theirs.

    Raises:
        ConfigError: a port is taken, or there are not GPUs enough.
    """

    def __init__(
        self,
        settings: ServerSettings,
        model: str,
        dtype: torch.dtype,
        max_length: int,
        device: torch.device,
        backend: str,
        more: Mapping[str, Any],
    ) -> None:
        self.settings, self._restarts, self._device = settings, 0, device
        # The trainer's, before it left some of its cores to the servers.
        self._threads: int | None = None
        arguments = server_arguments(settings, model, dtype, max_length, backend, more, on_cpu=device.type == "cpu")
        self._processes = [
            ServerProcess(
                arguments,
                self._environment(place, device),
                settings.port + place if settings.port else 0,
                settings.log_folder / f"server_{place}.log",
            )
            for place in range(settings.servers)
        ]

    def start(self, http: HttpThread) -> list[str]:
        """Start all and wait until they are ready.

        Returns:
            Their URLs.

        Raises:
            RolloutError: one of them does not come up.
        """
        self._http = http
        self._bring_up(range(len(self._processes)))
        return [process.url for process in self._processes]

    def restart_dead(self, down: Iterable[int]) -> list[int]:
        """Start those again that have ended or do not answer.

        Args:
            down: places of those that do not answer.

        Returns:
            The places of those started.

        Raises:
            RolloutError: it was tried too often.
        """
        dead = [i for i, process in enumerate(self._processes) if not process.alive or i in set(down)]
        if self._restarts + len(dead) > self.settings.restarts:
            raise RolloutError(
                f"vLLM servers died {self._restarts + len(dead)} times, more than engine.restarts={self.settings.restarts} "
                f"allows: {self.settings.log_folder} has what they said"
            )
        self._restarts += len(dead)
        for place in dead:
            self._processes[place].kill()
        self._bring_up(dead)
        return dead

    def draw_beside(self) -> None:
        """They draw while the trainer computes, which on a CPU leaves them half of the cores: threads that wait for each other
        on cores that others have taken make both slow (twice as slow as taking turns, with two threads on two cores).
        """
        if self._device.type == "cpu" and self._threads is None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(min(self._threads, max(1, len(_cores_here()) // 2)))

    def close(self) -> None:
        """End them all."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None
        if self._processes:
            with ThreadPoolExecutor(len(self._processes)) as pool:
                list(pool.map(ServerProcess.close, self._processes))

    def _bring_up(self, places: Iterable[int]) -> None:
        chosen = [self._processes[place] for place in places]
        for process in chosen:
            process.start()
        try:
            for process in chosen:
                process.wait(Server(process.url, self._http, self.settings.start_s), self.settings.start_s)
        except RolloutError:
            self.close()
            raise

    def _environment(self, place: int, device: torch.device) -> dict[str, str]:
        """Of a server: what it may use of this machine."""
        environment = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
            # The servers' workers import this package, wherever it lies.
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE_HOME), os.environ.get("PYTHONPATH")))),
        }
        wide = self.settings.tensor_parallel
        if device.type == "cpu":
            environment["VLLM_CPU_KVCACHE_SPACE"] = str(self.settings.cpu_kv_cache_gb)
            if wide == 1:
                # The engine computes in its own process: it would wait for a worker in a busy loop, on a core that others need.
                environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
                environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
                    cores(place * wide + rank, self.settings.servers * wide) for rank in range(wide)
                )
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus(place, wide, self.settings.servers))
        return environment


def server_arguments(
    settings: ServerSettings,
    model: str,
    dtype: torch.dtype,
    max_length: int,
    backend: str,
    more: Mapping[str, Any],
    *,
    on_cpu: bool,
) -> list[str]:
    """Of vLLM's server; docs/cluster.md shows them."""
    options: dict[str, Any] = {
        "model": model,
        "served_model_name": "policy",
        "dtype": str(dtype).removeprefix("torch."),
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": settings.enforce_eager or on_cpu,
        "enable_scale_out": True,
        "disable_log_stats": True,
        "generation_config": "vllm",
        "worker_extension_cls": EXTENSION,
        "weight_transfer_config": f'{{"backend": "{backend}"}}',
        **engine_options(max_length, on_cpu=on_cpu),
        **more,
    }
    if not on_cpu:
        options["gpu_memory_utilization"] = settings.gpu_memory_utilization
    arguments = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return arguments


def cores(number: int, of: int) -> str:
    """A worker's share of the cores, as vLLM wants it: where there are fewer than workers, some share one."""
    there = _cores_here()
    first, last = number * len(there) // of, max((number + 1) * len(there) // of, number * len(there) // of + 1)
    return ",".join(map(str, there[first:last]))


def _cores_here() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def gpus(place: int, wide: int, servers: int) -> list[str]:
    """The GPUs of a server: the last ones of this machine, so that the trainer has the first.

    Raises:
        ConfigError: there are not enough.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    first = len(there) - (servers - place) * wide
    if len(there) < servers * wide:
        raise ConfigError(
            f"engine.servers={servers} with engine.tensor_parallel={wide} need {servers * wide} GPUs; this machine has {len(there)}"
        )
    return there[first : first + wide]
