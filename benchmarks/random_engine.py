"""An engine that draws nothing: random tokens, at once. For what a step costs besides its sampling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rlvr_lightning.protocols import ModelFolder
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

# Tokens before it end responses and the like.
FIRST = 4


class RandomEngine:
    """Answers as long as they may be, of tokens that are all as likely."""

    def __init__(self) -> None:
        self.policy_version = -1
        self._vocabulary = 0

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Nothing but the size of the vocabulary is wanted."""
        self._vocabulary = len(source.tokenizer)

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Weights are looked at, as every engine must."""
        for _ in weights:
            pass
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """The same for the same seed."""
        return [self._one(request, sampling.max_new_tokens) for request in requests]

    def _one(self, request: GenerationRequest, length: int) -> Generation:
        generator = torch.Generator().manual_seed(request.seed)
        drawn = torch.randint(FIRST, self._vocabulary, (length,), generator=generator).tolist()
        likely = -math.log(self._vocabulary)
        return Generation(tuple(drawn), (likely,) * length, "length", self.policy_version)

    def close(self) -> None:
        """Nothing is held."""
