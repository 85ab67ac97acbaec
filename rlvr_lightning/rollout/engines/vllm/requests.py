"""What vLLM is asked for and what it answers, in process and over HTTP alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

# Prompt tokens computed at a time on the CPU; a prompt is never cut, so at least the longest one's.
CPU_BATCHED_TOKENS = 4096


def sampling_params(request: GenerationRequest, sampling: SamplingSpec) -> dict[str, Any]:
    """`SamplingParams` of a request, as plain values. Token ids in, token ids and log-probabilities out.

    A seed for each request takes vLLM off its fast sampling path on a GPU: without `exact_seeds` there is none.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "seed": request.seed if sampling.exact_seeds else None,
        "logprobs": 0,
        "detokenize": False,
    }


def engine_options(max_length: int, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM that decide whether what it returns can be learned from.

    Args:
        max_length: prompt and response together [tokens].
        on_cpu: whether it runs on the CPU.
    """
    options: dict[str, Any] = {
        "max_model_len": max_length,
        "skip_tokenizer_init": True,
        # After the temperature: the log-probabilities the tokens were drawn with.
        "logprobs_mode": "processed_logprobs",
    }
    if on_cpu:
        # A prompt cut in two takes back a draw of its seeded generator, which generators on the CPU cannot do.
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, CPU_BATCHED_TOKENS)}
    return options


def generation(
    token_ids: Sequence[int], logprobs: Sequence[float], reason: str | None, version: int, *, greedy: bool
) -> Generation:
    """A response as vLLM gives it.

    Args:
        token_ids: of the response.
        logprobs: of its tokens [nats].
        reason: why it ended.
        version: of the weights it was drawn with.
        greedy: whether each token was the most probable one.

    Raises:
        RolloutError: it was aborted, or is not whole.
    """
    if reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended a response with {reason!r}")
    if len(token_ids) != len(logprobs):
        raise RolloutError(f"vLLM gave {len(logprobs)} log-probabilities to {len(token_ids)} tokens")
    # Greedy tokens are certain; vLLM tells what they were at temperature 1.
    certain = (0.0,) * len(token_ids)
    return Generation(tuple(token_ids), certain if greedy else tuple(logprobs), cast(Any, reason), version)


def chosen_logprobs(token_ids: Sequence[int], entries: Sequence[Mapping[int, Any]]) -> list[float]:
    """Of the tokens drawn, out of what vLLM returns for each position [nats]."""
    return [float(entry[token].logprob) for token, entry in zip(token_ids, entries, strict=True)]
