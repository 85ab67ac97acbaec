"""How far an engine's log-probabilities are from a policy's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.protocols import RolloutEngine
from rlvr_lightning.types import GenerationRequest, SamplingSpec


@torch.no_grad()
def widest_gap(
    engine: RolloutEngine, policy: Policy, requests: Sequence[GenerationRequest], sampling: SamplingSpec
) -> float:
    """The largest difference over the tokens of fresh responses [nats], scored by the model itself; and each ends as it says."""
    gaps = []
    for request, drawn in zip(requests, engine.generate(requests, sampling), strict=True):
        logits = policy.causal_lm(torch.tensor([request.token_ids + drawn.token_ids])).logits / sampling.temperature
        scored = torch.log_softmax(logits[0, len(request.token_ids) - 1 : -1], -1)
        chosen = scored.gather(-1, torch.tensor(drawn.token_ids).unsqueeze(-1)).squeeze(-1)
        gaps.append(float((chosen - torch.tensor(drawn.logprobs)).abs().max()))
        assert drawn.finish_reason == ("stop" if drawn.token_ids[-1] in sampling.stop_token_ids else "length")
    return max(gaps)
