"""Rollouts with vLLM servers: started by the run or given by their URLs, one or many, on this machine or others."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError, EngineLostError, RolloutError
from rlvr_lightning.rollout.engines.dtypes import EngineDtype, check_dtype, engine_dtype
from rlvr_lightning.rollout.engines.vllm import adapters as beside
from rlvr_lightning.rollout.engines.vllm.client import Server, ServerDownError
from rlvr_lightning.rollout.engines.vllm.fleet import Fleet
from rlvr_lightning.rollout.engines.vllm.http import HttpThread
from rlvr_lightning.rollout.engines.vllm.installed import check_vllm
from rlvr_lightning.rollout.engines.vllm.owned import OwnServers, ServerSettings
from rlvr_lightning.rollout.engines.vllm.weights import TRANSFERS, Transfer, WeightSender, choose_sender
from rlvr_lightning.rollout.gathering import from_all_ranks, is_first_rank
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from rlvr_lightning.protocols import ModelFolder

log = logging.getLogger(__name__)


class VLLMServerEngine(beside.Offered):
    """Asks vLLM servers for responses.

    Args:
        servers: to start on this machine, where no `urls` are given.
        tensor_parallel: GPUs (or CPU processes) of each.
        urls: of servers that run already, started as docs/cluster.md has it.
        router: URL that responses are asked of, with a router behind it; weights go to each of `urls`.
        port: the first server's; the others have those after it. 0 for any that are free.
        gpu_memory_utilization: share of a GPU's memory a server may take.
        max_num_seqs: responses a server draws at a time.
        enforce_eager: skip graph capture. On the CPU it is always on.
        cpu_kv_cache_gb: key-value cache of a server on the CPU [GiB].
        transfer: how weights travel: `files`, `nccl`, `ipc`, or `auto` for what suits the trainer's device.
        transfer_folder: of `files`: shared memory, or a folder that all machines see.
        timeout_s: of one response [seconds].
        start_s: a server may take to be ready [seconds].
        retries: of a request that a server answered wrongly.
        restarts: of the run's own servers, in all.
        log_folder: takes what the run's own servers say.
        dtype: of the weights sampled from; `auto` is what the trainer computes in.
        adapters: as in `engine=vllm`.

    Raises:
        ConfigError: a number is out of range, or settings contradict each other.
        MissingDependencyError: servers are to be started, and vLLM cannot be used.
    """

    # They draw while the trainer does something else.
    is_apart = True

    def __init__(
        self,
        servers: int = 1,
        tensor_parallel: int = 1,
        urls: Sequence[str] | None = None,
        router: str | None = None,
        port: int = 0,
        gpu_memory_utilization: float = 0.9,
        max_num_seqs: int = 256,
        enforce_eager: bool = False,
        cpu_kv_cache_gb: int = 1,
        transfer: Transfer = "auto",
        transfer_folder: str = "/dev/shm",
        timeout_s: float = 1800.0,
        start_s: float = 600.0,
        retries: int = 3,
        restarts: int = 3,
        log_folder: str = "servers",
        dtype: EngineDtype = "auto",
        adapters: beside.Way = "auto",
    ) -> None:
        super().__init__(adapters)
        check_dtype(dtype)
        self.urls = list(urls or [])
        if min(servers, tensor_parallel, max_num_seqs, cpu_kv_cache_gb) < 1 or min(retries, restarts, port) < 0:
            raise ConfigError(
                "engine.servers, tensor_parallel, max_num_seqs and cpu_kv_cache_gb must be at least 1, retries, restarts and "
                "port at least 0"
            )
        if not 0 < gpu_memory_utilization < 1 or min(timeout_s, start_s) <= 0:
            raise ConfigError("engine.gpu_memory_utilization must be in (0, 1), timeout_s and start_s above 0")
        if transfer not in TRANSFERS:
            raise ConfigError(f"engine.transfer must be one of {', '.join(TRANSFERS)}; got {transfer}")
        if router is not None and not self.urls:
            raise ConfigError("engine.router needs engine.urls: the servers behind it, which are given the weights")
        if not self.urls:
            check_vllm("engine=vllm_server")
        self.settings = ServerSettings(
            servers, tensor_parallel, port, gpu_memory_utilization, max_num_seqs, enforce_eager, cpu_kv_cache_gb,
            start_s, restarts, Path(log_folder),
        )  # fmt: skip
        self.router, self.transfer, self.transfer_folder = router, transfer, transfer_folder
        self.timeout_s, self.retries, self.dtype = timeout_s, retries, dtype
        self.policy_version, self._cast = -1, torch.float32
        self._http: HttpThread | None = None
        self._fleet: Fleet | None = None
        self._own: OwnServers | None = None
        self._sender: WeightSender | beside.AdapterSender | None = None
        # Of this run: what another one has given a server is not taken for its own.
        self._run = ""

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Start the servers, or find them. Every rank must call it.

        Raises:
            RolloutError: on every rank, where a server cannot be started or used.
        """
        self._cast, self._http = engine_dtype(self.dtype, dtype), HttpThread()
        self._sender = choose_sender(self.transfer, Path(self.transfer_folder), device)
        offered, obstacle = self._offered, self.declined(device)
        if is_first_rank() and not self.urls:
            obstacle = obstacle or ("" if offered is None else beside.obstacle(offered, source))
            more = {} if offered is None or obstacle else beside.options(offered)
            backend = self._sender.backend
            self._own = OwnServers(self.settings, source.folder, self._cast, max_length, device, backend, more)
        told = from_all_ranks([self._begin(max_length, obstacle)] if is_first_rank() else [])[0]
        if isinstance(told, str):
            raise RolloutError(told)
        urls, self._run, obstacle = told
        servers = [Server(url, self._http, self.timeout_s, self.router) for url in urls]
        self.takes_adapters = beside.settled(offered, obstacle)
        if self.takes_adapters:
            self._sender = beside.AdapterSender(Path(self.transfer_folder))
            for server in servers:
                server.adapters = beside.NAME
        self._fleet = Fleet(servers, self._http, self.retries)

    def _begin(self, max_length: int, obstacle: str) -> tuple[list[str], str, str] | str:
        """The servers' URLs, the run's name and what is in the way of adapters; what went wrong, for all ranks to raise."""
        assert self._http is not None
        try:
            urls = self.urls if self._own is None else self._own.start(self._http)
            for server in (Server(url, self._http, self.timeout_s) for url in urls):
                self._http.call(check_server(server, max_length))
                if self._offered is not None and not obstacle:
                    asked = beside.server_obstacle(server, self._offered, Path(self.transfer_folder))
                    obstacle = self._http.call(asked)
        except RolloutError as error:
            return str(error)
        return urls, secrets.token_hex(4), obstacle

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Bring back servers that are gone, and give all of them the weights. Every rank must call it.

        Raises:
            RolloutError: on every rank, where a server cannot be brought back or does not take the weights.
        """
        assert self._fleet is not None
        assert self._sender is not None
        label = f"{self._run}:{policy_version}"
        told: list[str] = []
        try:
            if is_first_rank():
                self._revive()
            self._sender.send(weights, self._cast, self._fleet.servers, label)
        except RolloutError as error:
            told = [str(error)]
        if failures := from_all_ranks(told):
            raise RolloutError(failures[0])
        self._fleet.synced(label, policy_version)
        self.policy_version = policy_version

    def _revive(self) -> None:
        """Start the run's own servers again where they do not answer; nobody else's can be."""
        assert self._fleet is not None
        assert self._http is not None
        silent: dict[int, ServerDownError] = {}
        for place, server in enumerate(self._fleet.servers):
            try:
                if server.down:
                    raise ServerDownError(f"{server.url} does not answer")
                self._http.call(server.get("health"))
            except ServerDownError as error:
                silent[place] = error
        if self._own is None:
            # It may have been started again meanwhile.
            for place in list(silent):
                try:
                    self._http.call(self._fleet.servers[place].get("health"))
                except ServerDownError as error:
                    raise RolloutError(f"{error}: start it again, then go on with resume=") from error
            return
        for place in self._own.restart_dead(silent):
            log.warning(
                "server %s has been started again and is given the policy's weights", self._fleet.servers[place].url
            )
            self._fleet.count("restarts")

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """One response for each request."""
        results = dict(self.stream(requests, sampling))
        return [results[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """Each response as it ends.

        Raises:
            EngineLostError: no server is left that holds the policy's weights; after those that have ended.
            RolloutError: a server answers wrongly again and again.
        """
        assert self._fleet is not None, "start the engine before generating"
        places = {future: place for place, future in enumerate(self._fleet.submit(requests, sampling))}
        lost: EngineLostError | None = None
        try:
            for future in as_completed(places):
                try:
                    yield places[future], future.result()
                except EngineLostError as error:
                    lost = error
        finally:
            for future in places:
                future.cancel()
        if lost is not None:
            raise lost

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Future[Generation]]:
        """Have responses drawn while this thread goes on."""
        assert self._fleet is not None, "start the engine before generating"
        if self._own is not None:
            self._own.draw_beside()
        return self._fleet.submit(requests, sampling)

    def replicas(self) -> list[VLLMServerEngine]:
        """Each server by itself, for asking all of them the same."""
        assert self._fleet is not None
        found = []
        for server in self._fleet.servers:
            alone = object.__new__(VLLMServerEngine)
            alone.__dict__ |= {**self.__dict__, "_fleet": self._fleet.only(server)}
            found.append(alone)
        return found

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return self._cast

    def weight_sums(self) -> list[list[dict[str, Any]]]:
        """What the weights of each server's workers add up to; the first rank asks for all."""
        assert self._fleet is not None
        return self._fleet.weight_sums() if is_first_rank() else []

    def take_counts(self) -> dict[str, int]:
        """Retries, restarts and refused responses since the last call, of this rank."""
        return {} if self._fleet is None else self._fleet.take_counts()

    def close(self) -> None:
        """End the run's own servers; leave the others as they are."""
        if self._own is not None:
            self._own.close()
        if self._http is not None:
            self._http.close()
        self._own = self._http = self._fleet = None


async def check_server(server: Server, max_length: int) -> None:
    """Can a server be used?

    Raises:
        RolloutError: it is not there, too old, too short, or was started without what the run needs.
    """
    how = "start it as docs/cluster.md has it"
    try:
        await server.get("health")
        version = (await server.get("version"))["version"]
        models = (await server.get("v1/models"))["data"]
    except (ServerDownError, KeyError, TypeError) as error:
        raise RolloutError(f"{server.url} is no vLLM server that is ready: {error}") from error
    try:
        await server.get("weight_info")
    except ServerDownError as error:
        raise RolloutError(
            f"{server.url} (vLLM {version}) cannot be given weights: {how}, with VLLM_SERVER_DEV_MODE=1 and vLLM 0.32 or newer"
        ) from error
    length = models[0].get("max_model_len")
    if length is not None and length < max_length:
        raise RolloutError(
            f"{server.url} takes {length} tokens, prompt and response have up to {max_length}: {how}, with --max-model-len "
            f"{max_length}"
        )
    probe = {"token_ids": [0], "sampling_params": {"max_tokens": 1, "temperature": 0.0, "detokenize": False}}
    try:
        await server.post("inference/v1/generate", probe)
    except RolloutError as error:
        raise RolloutError(
            f"{server.url} does not draw from token ids: {how}, with --enable-scale-out ({error})"
        ) from error
