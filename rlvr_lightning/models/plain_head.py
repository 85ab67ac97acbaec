"""Is a model's output layer all there is between its hidden states and its logits?

Logits are made chunk by chunk from hidden states: what else a model does to them (soft caps, scales) would be lost. The
model's own forward pass is run between a stand-in for its decoder and one for its output layer, so that no weight is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvr_lightning.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def check_plain_head(model: PreTrainedModel, path: str) -> None:
    """Compare what goes into the output layer, and what comes out of the model, with the stand-ins'.

    Args:
        model: with or without weights.
        path: names it.

    Raises:
        ModelError: something is done to hidden states or logits on the way.
    """
    from transformers.modeling_outputs import MoeModelOutputWithPast

    settings = model.config.get_text_config()
    hidden = torch.linspace(-1, 1, int(settings.hidden_size)).view(1, 1, -1)
    logits = torch.linspace(-60, 60, int(settings.vocab_size)).view(1, 1, -1)
    seen: list[Tensor] = []

    def decode(*_: object, **__: object) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=hidden)

    def score(states: Tensor) -> Tensor:
        seen.append(states)
        return logits

    decoder, head = model.get_decoder(), model.get_output_embeddings()
    decoder.forward, head.forward = decode, score
    try:
        found = model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False).logits
    finally:
        del decoder.forward, head.forward
    if len(seen) != 1 or not torch.equal(seen[0], hidden) or not torch.equal(found.float(), logits):
        raise ModelError(f"model.path={path}: its logits are not those of a plain output layer, which is not supported")
