"""A batch of responses from `transformers`' own `generate`: what of it is alike is computed once, what has ended leaves it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.rollout.engines.seeded_sampler import SeededSampler
from rlvr_lightning.types import GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

# What models call their argument for what attention remembers, newest first.
CACHE_NAMES = ("cache", "past_key_values")


@torch.inference_mode()
def draw_together(
    model: PreTrainedModel, requests: Sequence[GenerationRequest], sampling: SamplingSpec, pad: int
) -> list[tuple[list[int], list[float]]]:
    """Responses, token by token, all at once.

    Args:
        model: draws.
        requests: prompts, and a seed for each response.
        sampling: how, and how long.
        pad: fills shorter prompts.

    Returns:
        Of each request tokens and log-probabilities [nats], up to the longest response's end.
    """
    prompts = {prompt: place for place, prompt in enumerate(dict.fromkeys(each.token_ids for each in requests))}
    ids, mask = (tensor.to(model.device) for tensor in _padded(list(prompts), pad))
    held = _prefilled(model, ids, mask)
    sampler = SeededSampler([each.seed for each in requests], sampling, model.device)
    rows = torch.tensor([prompts[each.token_ids] for each in requests], device=model.device)
    while len(rows) and sampler.length < sampling.max_new_tokens:
        for cache in held.values():
            cache.reorder_cache(rows)
        ids = _continued(model, ids[rows], mask[rows], held, sampler, sampling, pad)
        mask = torch.cat([mask[rows], mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
        rows = sampler.go_on()
    tokens, logprobs = (each[:, : sampler.length].tolist() for each in (sampler.tokens, sampler.logprobs))
    return list(zip(tokens, logprobs, strict=True))


def _padded(prompts: Sequence[tuple[int, ...]], pad: int) -> tuple[Int[Tensor, "P L"], Int[Tensor, "P L"]]:
    """Prompts of one width, padded on the left, and which tokens are theirs."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _prefilled(model: Any, ids: Int[Tensor, "P L"], mask: Int[Tensor, "P L"]) -> dict[str, DynamicCache]:
    """What attention remembers of each prompt but its last token, once for all of its responses, under the name the model
    takes it by; nothing where a model remembers otherwise (Mamba), or takes no positions (Bloom).
    """
    from transformers import DynamicCache

    parameters = inspect.signature(model.forward).parameters
    named = [name for name in CACHE_NAMES if name in parameters]
    # What `generate` itself goes by; and older models take no positions.
    if (
        model._is_stateful
        or not model._supports_default_dynamic_cache()
        or not named
        or "position_ids" not in parameters
    ):
        return {}
    held = {named[0]: DynamicCache(config=model.config.get_text_config())}
    if ids.shape[1] > 1:
        before = mask[:, :-1]
        positions = (before.cumsum(-1) - 1).clamp(min=0)
        # Nobody looks at the logits, which would be large.
        fewest = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        model(input_ids=ids[:, :-1], attention_mask=before, position_ids=positions, use_cache=True, **fewest, **held)
    return held


def _continued(
    model: PreTrainedModel,
    ids: Int[Tensor, "B L"],
    mask: Int[Tensor, "B L"],
    held: dict[str, DynamicCache],
    sampler: SeededSampler,
    sampling: SamplingSpec,
    pad: int,
) -> Int[Tensor, "B M"]:
    """What was written and what follows, up to where all have ended, or so many that the others better go on alone."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens - sampler.length,
        do_sample=False,
        eos_token_id=list(sampling.stop_token_ids),
        pad_token_id=pad,
    )
    written: Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([sampler]),
        stopping_criteria=StoppingCriteriaList([sampler.few_left] if held else []),
        **held,
    )
    return written
