"""Rollouts with `transformers`' own `generate`, wherever torch runs: the engine of a laptop.

The engine holds its own copy of the model, so that what it samples from is exactly what was last synced. Each response
draws from a generator of its own seed: it is the same whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.rollout.engines.dtypes import EngineDtype, check_dtype, engine_dtype
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlvr_lightning.protocols import ModelFolder


class SeededSampler:
    """A logits processor that samples by itself and leaves only the sampled token, recording its log-probability.

    Args:
        seeds: one for each row.
        sampling: temperature, top-p and how many tokens there are at most.
        device: of the logits.
    """

    def __init__(self, seeds: Sequence[int], sampling: SamplingSpec, device: torch.device) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        length = sampling.max_new_tokens
        draws = [torch.rand(length, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        self.uniforms = torch.stack(draws).to(device)
        self.logprobs: list[Float[Tensor, " B"]] = []

    def __call__(self, input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Inverse transform sampling: the first token whose cumulative probability exceeds the uniform number."""
        logprobs = self._distribution(scores.float())
        cumulative = logprobs.double().exp().cumsum(-1)
        uniforms = self.uniforms[:, len(self.logprobs)].unsqueeze(-1) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, uniforms, right=True).clamp(max=scores.shape[-1] - 1)
        self.logprobs.append(logprobs.gather(-1, chosen).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

    def _distribution(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """What is drawn from [nats]."""
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
        logprobs = torch.log_softmax(logits / self.temperature, dim=-1)
        if self.top_p == 1:
            return logprobs
        ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.double().exp()
        # A token is in where those before it do not reach top_p yet: the first is always in.
        left_out = (probabilities.cumsum(-1) - probabilities) >= self.top_p
        kept = logprobs.scatter(-1, order, ordered.masked_fill(left_out, -torch.inf))
        return torch.log_softmax(kept, dim=-1)


class TransformersEngine:
    """Draws responses with `generate`.

    Args:
        batch_size: responses drawn at a time.
        dtype: of the weights sampled from; `auto` is what the trainer computes in.

    Raises:
        ConfigError: the batch size is not positive, or the dtype unknown.
    """

    def __init__(self, batch_size: int = 256, dtype: EngineDtype = "auto") -> None:
        if batch_size < 1:
            raise ConfigError(f"TransformersEngine.batch_size must be at least 1; got {batch_size}")
        check_dtype(dtype)
        self.batch_size, self.dtype = batch_size, dtype
        self.policy_version = -1
        self._model: PreTrainedModel | None = None
        self._pad = 0
        self._cast = torch.float32

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Load the model's own copy."""
        self._cast = engine_dtype(self.dtype, dtype)
        model = source.load(self._cast)
        self._model = model.to(device).requires_grad_(False).eval()
        self._pad = int(source.tokenizer.pad_token_id)

    @torch.no_grad()
    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Copy the weights in place, cast to the engine's dtype."""
        assert self._model is not None, "start the engine before syncing"
        held = dict(self._model.named_parameters())
        missing = set(held)
        for name, weight in weights:
            if name not in held:
                raise RolloutError(f"the engine's model has no weight named {name}")
            held[name].copy_(weight)
            missing.discard(name)
        if missing:
            raise RolloutError(f"weights were not synced: {', '.join(sorted(missing)[:3])}")
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """One response for each request."""
        results = dict(self.stream(requests, sampling))
        return [results[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """Batch after batch; similar lengths share one."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].token_ids))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            drawn = self._generate_batch([requests[i] for i in chosen], sampling)
            yield from zip(chosen, drawn, strict=True)

    @torch.no_grad()
    def _generate_batch(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        from transformers import GenerationConfig, LogitsProcessorList

        assert self._model is not None, "start the engine before generating"
        device = self._model.device
        width = max(len(request.token_ids) for request in requests)
        ids = torch.full((len(requests), width), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.token_ids) :] = torch.tensor(request.token_ids)
            mask[row, width - len(request.token_ids) :] = 1
        sampler = SeededSampler([r.seed for r in requests], sampling, device)
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=list(sampling.stop_token_ids),
            pad_token_id=self._pad,
        )
        output = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler]),
        )
        responses = output[:, width:].tolist()
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        return [self._cut(*pair, sampling) for pair in zip(responses, logprobs, strict=True)]

    def _cut(self, tokens: list[int], logprobs: list[float], sampling: SamplingSpec) -> Generation:
        """A row up to and including its first stop token."""
        ends = [i for i, token in enumerate(tokens) if token in sampling.stop_token_ids]
        length = ends[0] + 1 if ends else len(tokens)
        reason: Literal["stop", "length"] = "stop" if ends else "length"
        return Generation(tuple(tokens[:length]), tuple(logprobs[:length]), reason, self.policy_version)

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return self._cast

    def close(self) -> None:
        """Drop the model."""
        self._model = None
