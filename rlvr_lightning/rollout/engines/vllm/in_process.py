"""Rollouts with vLLM in this process, weights synced in place.

vLLM is imported when the engine starts, never before. Its own multiprocessing is switched off: the engine shares the
trainer's process and device. With several ranks each holds an engine of its own, or a part of one that is
tensor-parallel over ranks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.rollout.engines.dtypes import EngineDtype, check_dtype, engine_dtype
from rlvr_lightning.rollout.engines.vllm import adapters as beside
from rlvr_lightning.rollout.engines.vllm.cpu_cache import cache_bytes
from rlvr_lightning.rollout.engines.vllm.groups import RankGroup, launched
from rlvr_lightning.rollout.engines.vllm.installed import check_vllm
from rlvr_lightning.rollout.engines.vllm.requests import chosen_logprobs, engine_options, generation, sampling_params
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from rlvr_lightning.protocols import ModelFolder

EXTENSION = "rlvr_lightning.rollout.engines.vllm.worker.WorkerExtension"


class VLLMEngine(beside.Offered):
    """Draws responses with vLLM.

    Args:
        gpu_memory_utilization: share of the device's memory vLLM may take; the trainer needs the rest.
        max_num_seqs: responses drawn at a time.
        enforce_eager: skip graph capture: a faster start, slower decoding on a GPU. On the CPU it is always on.
        cpu_kv_cache_gb: key-value cache on the CPU at most [GiB]; less where `max_num_seqs` responses of full length fill less.
        tensor_parallel: ranks that share an engine, neighbours on one machine; each has one of its own with 1.
        sleep: give a GPU's memory back while nothing is drawn, weights included, which come anew with the next policy.
        dtype: of the weights sampled from; `auto` is what the trainer computes in.
        adapters: a LoRA policy's travel `alone`, or `merged` with the weights; `auto`: alone on a GPU, where vLLM can take them.

    Raises:
        ConfigError: a number is out of range, or the dtype unknown.
        MissingDependencyError: vLLM is not installed, too old, or cannot be imported.
    """

    def __init__(
        self,
        gpu_memory_utilization: float = 0.4,
        max_num_seqs: int = 256,
        enforce_eager: bool = False,
        cpu_kv_cache_gb: int = 1,
        tensor_parallel: int = 1,
        sleep: bool = True,
        dtype: EngineDtype = "auto",
        adapters: beside.Way = "auto",
    ) -> None:
        super().__init__(adapters)
        check_dtype(dtype)
        if not 0 < gpu_memory_utilization < 1:
            raise ConfigError(f"engine.gpu_memory_utilization must be in (0, 1); got {gpu_memory_utilization}")
        if min(max_num_seqs, cpu_kv_cache_gb, tensor_parallel) < 1:
            raise ConfigError("engine.max_num_seqs, cpu_kv_cache_gb and tensor_parallel must be at least 1")
        check_vllm("engine=vllm")
        self.gpu_memory_utilization, self.max_num_seqs = gpu_memory_utilization, max_num_seqs
        self.enforce_eager, self.cpu_kv_cache_gb = enforce_eager, cpu_kv_cache_gb
        self.tensor_parallel, self.sleep, self.dtype = tensor_parallel, sleep, dtype
        self.policy_version = -1
        self._llm: Any = None
        self._cast = torch.float32
        self._device = torch.device("cpu")
        self._group = RankGroup()
        self._asleep = False

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Bring vLLM up with the folder's weights, on this rank's device. Every rank must call it.

        Raises:
            ConfigError: the ranks cannot be cut into groups of `tensor_parallel`.
        """
        self._cast, self._device = engine_dtype(self.dtype, dtype), device
        self._group = RankGroup.of(self.tensor_parallel)
        on_cpu = device.type == "cpu"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        offered = self._offered
        obstacle = "" if offered is None else self.declined(device) or beside.obstacle(offered, source)
        with launched(device), _own_threads():
            from vllm import LLM
            from vllm.platforms import current_platform

            if on_cpu:
                # Compiling the few operations of its sampler takes longer than they do in most runs here.
                current_platform.simple_compile_backend = "eager"
            self._llm = LLM(
                model=source.folder,
                dtype=str(self._cast).removeprefix("torch."),
                max_num_seqs=self.max_num_seqs,
                enforce_eager=self.enforce_eager or on_cpu,
                gpu_memory_utilization=self.gpu_memory_utilization,
                disable_log_stats=True,
                tensor_parallel_size=self.tensor_parallel,
                distributed_executor_backend=self._group.executor,
                enable_sleep_mode=self._sleeps,
                worker_extension_cls=EXTENSION,
                # Ranks that share an engine draw the same random numbers, others their own.
                seed=self._group.number,
                kv_cache_memory_bytes=self._cache(source, max_length) if on_cpu else None,
                **engine_options(max_length, on_cpu=on_cpu),
                **(beside.options(offered) if offered is not None and not obstacle else {}),
            )
        if offered is not None and not obstacle:
            (obstacle,) = self._llm.collective_rpc("rlvr_adapter_obstacle", args=(offered.rank, list(offered.targets)))
        self.takes_adapters, self._asleep = beside.settled(offered, obstacle), False

    def _cache(self, source: ModelFolder, max_length: int) -> int:
        return cache_bytes(source.folder, self.cpu_kv_cache_gb, self.max_num_seqs, max_length, self._cast.itemsize)

    @property
    def _sleeps(self) -> bool:
        return self.sleep and self._device.type == "cuda"

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Load the weights in place, cast to the engine's dtype, and forget the prefixes cached under the old ones.

        Raises:
            RolloutError: responses are still being drawn.
        """
        assert self._llm is not None, "start the engine before syncing"
        with self._on_device():
            if self._asleep:
                self._llm.wake_up(tags=["weights"])
            if self.takes_adapters:
                with beside.written(weights, self._cast, None) as made:
                    self._llm.collective_rpc("rlvr_load_adapters", args=(str(made),))
            else:
                self._reload(weights)
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False
            if not self._llm.reset_prefix_cache():
                raise RolloutError("vLLM could not reset its prefix cache: requests are still running")
        self.policy_version = policy_version

    def _reload(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        cast_weights = ((name, weight.to(self._cast)) for name, weight in weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cast_weights})
        if self._device.type == "cpu":
            from rlvr_lightning.rollout.engines.vllm.worker import repack_tied_head

            self._llm.apply_model(repack_tied_head)

    def rest(self) -> None:
        """On a GPU, give back what is held: the cache, and the weights, without which nothing is drawn until a sync."""
        if self._llm is not None and self._sleeps and not self._asleep:
            with self._on_device():
                # Weights that never come anew wait in the host's memory.
                self._llm.sleep(level=1 if self.takes_adapters else 2)
            self._asleep, self.policy_version = True, -1

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """One response for each request. Every rank must call it where ranks share an engine."""
        results = dict(self.stream(requests, sampling))
        return [results[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """Each response as it ends."""
        assert self._llm is not None, "start the engine before generating"
        everyones, mine = self._group.together(requests)
        engine, added = self._llm.llm_engine, list[str]()
        with self._on_device():
            try:
                for place, request in enumerate(everyones):
                    prompt = {"prompt_token_ids": list(request.token_ids)}
                    added.append(
                        engine.add_request(str(place), prompt, _params(request, sampling), lora_request=self._named())
                    )
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        place = int(output.request_id)
                        if output.finished and place in mine:
                            yield place - mine.start, self._generation(output.outputs[0], sampling)
            finally:
                # Whoever stops listening leaves none behind, of which the next weights would be refused.
                if engine.has_unfinished_requests():
                    engine.abort_request(added, internal=True)

    def _named(self) -> Any:
        """The adapters, as a request names them: they are there, whatever the path."""
        if not self.takes_adapters:
            return None
        from vllm.lora.request import LoRARequest

        from rlvr_lightning.rollout.engines.vllm.worker import FIRST

        return LoRARequest(beside.NAME, FIRST, beside.NAME)

    def _generation(self, output: Any, sampling: SamplingSpec) -> Generation:
        tokens, greedy = output.token_ids, sampling.temperature == 0
        logprobs = chosen_logprobs(tokens, output.logprobs)
        return generation(tokens, logprobs, output.finish_reason, self.policy_version, greedy=greedy)

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return self._cast

    def weight_sums(self) -> list[list[dict[str, Any]]]:
        """What the engine's weights add up to. Every rank must call it where ranks share an engine."""
        assert self._llm is not None
        return [self._group.gathered(self._llm.collective_rpc("rlvr_weight_sums"))]

    def close(self) -> None:
        """Shut the engine core down and free its memory."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()


def _params(request: GenerationRequest, sampling: SamplingSpec) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**sampling_params(request, sampling), output_kind=RequestOutputKind.FINAL_ONLY)


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """vLLM's CPU worker pins the process to other threads and forbids to change them; the trainer goes on with its own."""
    threads, change, cores = torch.get_num_threads(), torch.set_num_threads, _affinity()
    try:
        yield
    finally:
        torch.set_num_threads = change
        if cores is not None:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
