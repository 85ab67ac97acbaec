"""Hidden states to token statistics in one pass over the logits, chunk by chunk.

The logits of a step never exist at once: a chunk's are made, reduced to a few numbers per token, and dropped (made
again in the backward pass). What no component requires is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlvr_lightning.objective.fused import HeadPass
from rlvr_lightning.protocols import VocabStatistic

Statistics = dict[str, Shaped[Tensor, "B T ..."]]
Foresight = Callable[[Tensor, Statistics], Sequence[Tensor | None]]

# Logits held at a time: 2**25 numbers, 128 MiB in float32. Blocks below 32 MiB would come from the C heap, where the
# small results in between keep them from being used again: memory would grow with the step.
CHUNK_ELEMENTS = 2**25
# A number put in for others is moved by so much the first time, and each further time again [roundings of its dtype].
NUDGE = 4


def token_stats(
    hidden: Float[Tensor, "B T H"],
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    head: Callable[[Tensor], Tensor],
    temperature: float,
    statistics: Sequence[VocabStatistic] = (),
    old: Mapping[str, Shaped[Tensor, "B T ..."]] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    foresee: Foresight | None = None,
    step_tokens: int | None = None,
) -> tuple[Float[Tensor, "B T"], Statistics]:
    """Log-probabilities of the tokens and the required statistics.

    A plain output layer takes the pass with analytic gradients (`fused.py`); any other, such as one with adapters, is left
    to autograd. Both compute the same.

    Args:
        hidden: last hidden states; position t scores token t.
        token_ids: the sampled tokens.
        mask: tokens to score; the others get 0 and no gradient.
        head: hidden states to logits.
        temperature: divides the logits.
        statistics: what to compute besides the log-probability.
        old: statistics of the same tokens under the policy at the start of the update, for those that read them.
        chunk_elements: logits held at a time.
        foresee: from log-probabilities and statistics, of which those that are not known yet are put in for (`_SoFar`), to the
            loss's gradient with respect to each of them, None where there is none. A wrong guess costs time and changes nothing.
        step_tokens: in an on-policy pass, tokens of the whole step, of which these are some: what is read of its rarest tokens
            (`ClosedStatistic.rarest`) may be nan elsewhere. None: it is made of all.

    Returns:
        Log-probabilities [nats], and each statistic by name. At least float32, whatever the model's dtype.
    """
    before = {name: values[mask] for name, values in (old or {}).items()}
    names = ["logprobs", *(statistic.name for statistic in statistics)]
    looks = None if foresee is None else _SoFar(mask, names, foresee)
    job = HeadPass(token_ids[mask], before, statistics, temperature, chunk_elements, looks, step_tokens)
    # A subclass, or a layer that others hook into, may do more than multiply.
    plain = type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks)
    columns = (
        job(hidden[mask], head) if plain and isinstance(head, nn.Linear) else _by_autograd(job, hidden[mask], head)
    )
    full = {name: _scatter(column, mask) for name, column in zip(names, columns, strict=True)}
    return full.pop("logprobs"), full


class _SoFar:
    """Results at their places in the batch. Until a token's are known, another's stand there.

    So a quantile of few tokens is near that of all, and of as many tokens above it as there will be. Numbers put in for others are moved a
    little: equal ones would be counted as ties.

    Args:
        mask: tokens that are scored.
        names: of the results; the first are the log-probabilities.
        foresee: what is made of them.
    """

    def __init__(self, mask: Bool[Tensor, "B T"], names: Sequence[str], foresee: Foresight) -> None:
        self._mask, self._names, self._foresee = mask, names, foresee
        self._places = mask.nonzero()
        self._full: Statistics = {}

    def __call__(self, at: slice, columns: Sequence[Shaped[Tensor, "N ..."]]) -> list[Tensor | None]:
        where = tuple(self._places[at].t())
        for name, column in zip(self._names, columns, strict=True):
            if name not in self._full:
                self._full[name] = column.new_zeros(*self._mask.shape, *column.shape[1:])
            self._full[name][where] = column[at]
            if at.stop < len(self._places):
                self._full[name][tuple(self._places[at.stop :].t())] = _others(
                    column[: at.stop], len(self._places) - at.stop
                )
        logprobs, *_ = self._full.values()
        others = {name: self._full[name] for name in self._names[1:]}
        return [None if grad is None else grad[where] for grad in self._foresee(logprobs, others)]


def _others(known: Shaped[Tensor, "K ..."], count: int) -> Shaped[Tensor, "M ..."]:
    """As many as are asked for, like those that are known."""
    places = torch.arange(count, device=known.device)
    found = known[places % len(known)]
    if found.dim() > 1 or not found.is_floating_point():
        return found
    return found * (1 + NUDGE * torch.finfo(found.dtype).eps * (1 + places // len(known)))


def vocabulary_size(head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    """V, from the output layer itself."""
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else int(head(hidden[:1]).shape[-1])


def _by_autograd(
    job: HeadPass, hidden: Float[Tensor, "N H"], head: Callable[[Tensor], Tensor]
) -> tuple[Shaped[Tensor, "N ..."], ...]:
    """Each chunk's results, with a graph that makes its logits again."""
    names = list(job.old)

    def reduce(chunk: Float[Tensor, "N H"], ids: Int[Tensor, " N"], *held: Tensor) -> tuple[Tensor, ...]:
        logits = head(chunk)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        before = dict(zip(names, held, strict=True))
        # Autocast would take products of float32 numbers, such as an entropy's, in half precision.
        with torch.autocast(logits.device.type, enabled=False):
            logprobs = torch.log_softmax(logits / job.temperature, dim=-1)
            results = [logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)]
            for statistic in job.statistics:
                results.append(statistic(logprobs if statistic.differentiable else logprobs.detach(), ids, before))
        return tuple(results)

    tokens = (hidden, job.token_ids, *job.old.values())
    size = max(1, job.chunk_elements // vocabulary_size(head, hidden))
    if len(hidden) <= size:
        return reduce(*tokens)
    chunks = zip(*(torch.split(values, size) for values in tokens), strict=True)
    parts = [_checkpointed(reduce, chunk) for chunk in chunks]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _checkpointed(function: Callable[..., tuple[Tensor, ...]], chunk: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return function(*chunk)
    result = checkpoint(function, *chunk, use_reentrant=False)
    assert isinstance(result, tuple)
    return result


def _scatter(values: Shaped[Tensor, "N ..."], mask: Bool[Tensor, "B T"]) -> Shaped[Tensor, "B T ..."]:
    shape = (*mask.shape, *values.shape[1:])
    spread = mask.view(*mask.shape, *[1] * (values.dim() - 1)).expand(shape)
    return torch.zeros(shape, dtype=values.dtype, device=values.device).masked_scatter(spread, values)
