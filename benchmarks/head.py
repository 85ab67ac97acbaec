"""The output layer and the pass over the logits, forward and backward, against plain `log_softmax` and other fused layers.

Every way works on the same numbers, in a process of its own. Memory is the process's highest above what it was with inputs and
their gradients there.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.page import Plot, Table
from benchmarks.turns import Measured, Worker, answer, peak, take_turns, wait
from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxyLogprob
from rlvr_lightning.methods.regularizers.proxy_kl import ProxyKL
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.protocols import VocabStatistic

NOTE = """Hidden states of width 512 to log-probabilities of given tokens and back, time and memory over those of plain
`log_softmax` with all logits at once. PyTorch's `linear_cross_entropy` (chunked) returns a sum alone, so that its gradient is
formed in the forward pass; Liger's is its fallback without Triton, with entropy."""
FILTER = Filter(0.02, "relative")
OURS: dict[str, tuple[VocabStatistic, ...]] = {
    "log-probability": (),
    "and entropy": (Entropy(),),
    "and entropy flow": (Entropy(), EntropyFlow()),
    "and Lp-Reg's penalty": (Entropy(), EntropyFlow(), ProxyLogprob(FILTER), ProxyKL(FILTER, 64)),
}
PLAIN, TORCH, LIGER = "plain", "linear_cross_entropy", "Liger"
WIDTH = 512
# Of tokens that Lp-Reg pulls.
CHOSEN = 0.01
VOCABULARIES = (1_000, 8_000, 32_000, 152_000)
TOKENS = (1024, 8192, 65_536)
# With all tokens, plain logits would not fit a laptop.
PLAIN_ELEMENTS = 2**29


def measure(folder: Path, rounds: int) -> Table:
    """All ways at one size, then ours and plain over vocabularies and tokens."""
    rows, by_vocabulary = [], []
    full = "and entropy flow"
    others = [TORCH, *([LIGER] if importlib.util.find_spec("liger_kernel") is not None else [])]
    for vocabulary in VOCABULARIES:
        whole = vocabulary == max(VOCABULARIES)
        ways = [PLAIN, *(OURS if whole else [full]), *(others if whole else [])]
        found = turns(ways, vocabulary, TOKENS[0], rounds)
        rows += [_row(way, vocabulary, TOKENS[0], one, found[PLAIN]) for way, one in found.items()]
        by_vocabulary.append((vocabulary, found[full].against(found[PLAIN])))
    for tokens in TOKENS[1:]:
        fits = tokens * 32_000 <= PLAIN_ELEMENTS
        found = turns([*([PLAIN] if fits else []), full], 32_000, tokens, min(rounds, 3))
        rows += [_row(way, 32_000, tokens, one, found.get(PLAIN)) for way, one in found.items()]
    columns = ("way", "vocabulary", "tokens", "time [s]", "over plain", "memory [MB]", "over plain ")
    plot = Plot("vocabulary", "time over plain log_softmax", {"log-probability, entropy, entropy flow": by_vocabulary})
    return Table("head", "The output layer", NOTE, columns, rows, plot)


def turns(ways: Sequence[str], vocabulary: int, tokens: int, rounds: int) -> dict[str, Measured]:
    """Of each way."""
    sizes = (str(vocabulary), str(tokens))
    return take_turns({way: Worker("benchmarks.head", [way, *sizes]) for way in ways}, rounds)


def _row(way: str, vocabulary: int, tokens: int, one: Measured, plain: Measured | None) -> list[str]:
    ratios = ["", ""] if plain is None else [f"{one.against(plain):.2f}", f"{one.memory / plain.memory:.2f}"]
    sizes = [f"{vocabulary:,}", f"{tokens:,}"]
    return [way, *sizes, f"{one.median:.2f}", ratios[0], f"{one.memory / 1e6:.0f}", ratios[1]]


def ours(hidden: Tensor, ids: Tensor, head: nn.Linear, weights: Tensor, wanted: tuple[VocabStatistic, ...]) -> Tensor:
    """Chunk by chunk; the loss's gradient is foreseen as in training, where a token's terms are its own."""
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    chosen = (torch.arange(len(ids)) % round(1 / CHOSEN) == 0).unsqueeze(0)
    pull = torch.where(chosen, weights, 0.0)

    def foresee(logprobs: Tensor, statistics: dict[str, Tensor]) -> list[Tensor | None]:
        return [weights.unsqueeze(0), *(pull if one.differentiable else None for one in wanted)]

    states, tokens = hidden.unsqueeze(0), ids.unsqueeze(0)
    logprobs, named = token_stats(states, tokens, mask, head, 1.0, wanted, foresee=foresee)
    pulled = [named[one.name] for one in wanted if one.differentiable]
    return logprobs[0] + sum((torch.where(chosen[0], one[0], 0.0) for one in pulled), torch.zeros(()))


def way_of(name: str, weights: Tensor) -> Callable[[Tensor, Tensor, nn.Linear], Tensor]:
    """Hidden states, tokens and layer to log-probabilities, or to their sum."""
    if name == PLAIN:
        return lambda hidden, ids, head: head(hidden).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    if name == TORCH:
        options = torch.nn.LinearCrossEntropyOptions()
        loss = torch.nn.functional.linear_cross_entropy
        return lambda hidden, ids, head: -loss(hidden, head.weight, ids, reduction="sum", options=options)
    if name == LIGER:
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

        fused = LigerFusedLinearScaledCrossEntropyFunction.apply
        return lambda hidden, ids, head: -fused(hidden, head.weight, ids, 1.0, -100, return_entropy=True)[0]
    return lambda hidden, ids, head: ours(hidden, ids, head, weights, OURS[name])


def main(name: str, vocabulary: int, tokens: int) -> None:
    """Forward and backward whenever told to."""
    wait()
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, vocabulary, bias=False)
    nn.init.normal_(head.weight, std=0.05, generator=generator)
    hidden = torch.randn(tokens, WIDTH, generator=generator).requires_grad_()
    ids = torch.randint(vocabulary, (tokens,), generator=generator)
    weights = torch.linspace(-1, 1, tokens)
    compute = way_of(name, weights)
    # The gradients themselves are no work's memory, nor is the one that is added to them.
    hidden.grad, head.weight.grad = torch.zeros_like(hidden), torch.zeros_like(head.weight)
    spare = torch.zeros_like(head.weight)
    before = peak()
    del spare
    while True:
        began = time.perf_counter()
        found = compute(hidden, ids, head)
        (found * weights if found.dim() else found).sum().backward()  # type: ignore[no-untyped-call]
        answer(time.perf_counter() - began, peak() - before)
        if not wait():
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
