"""The policy: a causal language model whose forward pass gives token statistics instead of logits.

Being one module, it is what strategies wrap: under FSDP its forward gathers the output layer for all chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rlvr_lightning.models.adapters import (
    adapter_weights,
    add_adapters,
    base_weights,
    begin,
    checkpoint_name,
    described,
    merged_weights,
)
from rlvr_lightning.models.attention import BY_RESPONSE, set_attention
from rlvr_lightning.models.loading import build, fill, fingerprint
from rlvr_lightning.models.packing import Packing, packed_as
from rlvr_lightning.models.plain_head import check_plain_head
from rlvr_lightning.models.recompute import recompute
from rlvr_lightning.objective.token_stats import Foresight, Statistics, token_stats
from rlvr_lightning.protocols import Adapters, VocabStatistic
from rlvr_lightning.types import TokenBatch

if TYPE_CHECKING:
    from rlvr_lightning.models.source import ModelSource


class Policy(nn.Module):
    """A causal language model, possibly with LoRA adapters.

    Args:
        source: the model folder and how to load it.
        trainable: False for the frozen reference (adapters are then left out).
        device: weights are read onto it, one by one.
        share: shares the weights out over the ranks, before there are any; None for a model of this rank alone.

    Raises:
        ModelError: the folder cannot be used, or its logits are not those of a plain output layer.
        ConfigError: the adapters cannot be merged into the weights.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        trainable: bool = True,
        device: torch.device | None = None,
        share: Callable[[Policy], None] | None = None,
    ) -> None:
        super().__init__()
        model, files = build(source)
        check_plain_head(model, source.path)
        self.fingerprint = fingerprint(model, files)
        self.attention = set_attention(model, source.attention)
        if trainable:
            recompute(model.get_decoder().layers, source.gradient_checkpointing)
        self.has_adapters = trainable and source.lora is not None
        self._lora = source.lora
        if not self.has_adapters:
            model.requires_grad_(trainable)
        # No dropout: a sampled token must have the same probability each time it is scored.
        self.model: Any = (add_adapters(model, source.lora, source.path) if self.has_adapters else model).eval()
        device = device or torch.device("cpu")
        if share is not None:
            share(self)
        if files is not None:
            fill(self.causal_lm, files, device, checkpoint_name)
        if self.has_adapters:
            begin(self.causal_lm, source.lora, device)
        if share is None:
            self.to(device)

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model itself, adapters built in."""
        return self.model.get_base_model() if self.has_adapters else self.model

    def forward(
        self,
        batch: TokenBatch,
        temperature: float,
        statistics: Sequence[VocabStatistic] = (),
        foresee: Foresight | None = None,
        step_tokens: int | None = None,
    ) -> tuple[Float[Tensor, "B T"], Statistics]:
        """Log-probabilities of the response tokens that carry weight, and the statistics [nats]; see `token_stats`."""
        # Padding comes after what is real, so that causal attention needs no mask for it. Packed responses are told apart
        # by their positions, or by their lengths.
        packing, ids = Packing.of(batch, shares=self.attention == BY_RESPONSE), batch.input_ids
        with packed_as(packing):
            computed = self.causal_lm.get_decoder()(
                input_ids=packing.shrink(ids),
                attention_mask=None,
                position_ids=packing.shrink(packing.positions(ids)),
                use_cache=False,
            ).last_hidden_state
        hidden = packing.spread(computed)
        head = self.causal_lm.get_output_embeddings()
        # The state before a token scores it.
        return token_stats(
            hidden[:, :-1],
            batch.targets,
            batch.loss_mask,
            head,
            temperature,
            statistics,
            batch.old_statistics,
            foresee=foresee,
            step_tokens=step_tokens,
        )

    def free_gathered(self) -> None:
        """Free what a pass without a backward pass may leave gathered under FSDP2: the weights are float32 shards again."""
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The model as it was before adapters were trained: the reference policy of a LoRA run."""
        assert self.has_adapters
        with self.model.disable_adapter():
            yield

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights under their checkpoint names: shards gathered, adapters merged, nothing changed in place.

        Under a sharded strategy this is a collective: every rank must exhaust it.
        """
        self.free_gathered()
        yield from merged_weights(self.causal_lm)

    def adapters(self) -> Adapters | None:
        """What stands beside the weights; None where nothing does."""
        return described(self.causal_lm, self._lora) if self.has_adapters else None

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights but the adapters, otherwise as `full_weights` gives them."""
        self.free_gathered()
        yield from base_weights(self.causal_lm)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The adapters alone, otherwise as `full_weights` gives them."""
        self.free_gathered()
        yield from adapter_weights(self.causal_lm)
