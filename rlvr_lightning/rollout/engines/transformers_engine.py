"""Rollouts with `transformers`' own `generate`, wherever torch runs: the engine of a laptop.

The engine holds its own copy of the model, so that what it samples from is exactly what was last synced. Each response
draws from a generator of its own seed: it is the same whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.rollout.engines.dtypes import EngineDtype, check_dtype, engine_dtype
from rlvr_lightning.rollout.engines.together import draw_together
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlvr_lightning.protocols import ModelFolder


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

    def _generate_batch(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        assert self._model is not None, "start the engine before generating"
        drawn = draw_together(self._model, requests, sampling, self._pad)
        return [self._cut(tokens, logprobs, sampling) for tokens, logprobs in drawn]

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
