"""Each response from a seed of its own, inside `transformers`' generation: what it draws does not depend on its company."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr_lightning.types import SamplingSpec

# Responses that must have ended before a batch goes on without them: each time costs about what a token does.
LEAST_ENDED = 8


class SeededSampler:
    """A logits processor that samples by itself and leaves only the sampled token, recording it and its log-probability.

    Args:
        seeds: one for each row.
        sampling: temperature, top-p, stop tokens and how many tokens there are at most.
        device: of the logits.
    """

    def __init__(self, seeds: Sequence[int], sampling: SamplingSpec, device: torch.device) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        length = sampling.max_new_tokens
        draws = [torch.rand(length, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        self.uniforms = torch.stack(draws).to(device)
        self.logprobs = torch.zeros(self.uniforms.shape, dtype=torch.float32, device=device)
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)
        # Tokens drawn so far; which responses the rows of the batch are, and whether they have ended.
        self.length = 0
        self.rows = torch.arange(len(seeds), device=device)
        self._stops = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)
        self._ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Inverse transform sampling: the first token whose cumulative probability exceeds the uniform number."""
        logprobs = self._distribution(scores.float())
        cumulative = logprobs.double().exp().cumsum(-1)
        uniforms = self.uniforms[self.rows, self.length].unsqueeze(-1) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, uniforms, right=True).clamp(max=scores.shape[-1] - 1)
        self.logprobs[self.rows, self.length] = logprobs.gather(-1, chosen).squeeze(-1)
        self.tokens[self.rows, self.length] = chosen.squeeze(-1)
        self._ended |= torch.isin(chosen.squeeze(-1), self._stops)
        self.length += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

    def few_left(self, input_ids: Int[Tensor, "B L"], scores: object) -> Bool[Tensor, " B"]:
        """A stopping criterion: half of the batch has ended, so that the others better go on without it."""
        ended = int(self._ended.sum())
        return torch.full_like(self._ended, ended >= LEAST_ENDED and 2 * ended >= len(self._ended))

    def go_on(self) -> Int[Tensor, " M"]:
        """Leave out the rows that have ended; those that stay are returned, by their place in the batch so far."""
        left = (~self._ended).nonzero().squeeze(-1)
        self.rows, self._ended = self.rows[left], self._ended[left]
        return left

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
