"""The output layer and the pass over the logits, forward and backward, beside plain `log_softmax`.

    python -m benchmarks.head [--vocabulary 152000] [--tokens 1024] [--hidden 512]

Every way works on the same numbers, in a process of its own; they take turns, and each reports its median. Memory is the
process's highest (VmHWM) above what it was with the inputs there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxyKL, ProxyLogprob
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.protocols import VocabStatistic

FILTER = Filter(0.02, "relative")
WAYS: dict[str, tuple[VocabStatistic, ...]] = {
    "log-probability": (),
    "and entropy": (Entropy(),),
    "and entropy flow": (Entropy(), EntropyFlow()),
    "and Lp-Reg's penalty": (Entropy(), EntropyFlow(), ProxyLogprob(FILTER), ProxyKL(FILTER, 64)),
}
ROUNDS = 5
# Of tokens that Lp-Reg pulls.
CHOSEN = 0.01


def plain(hidden: Tensor, ids: Tensor, head: nn.Linear) -> Tensor:
    """All logits at once."""
    return head(hidden).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def ours(hidden: Tensor, ids: Tensor, head: nn.Linear, wanted: tuple[VocabStatistic, ...]) -> Tensor:
    """Chunk by chunk."""
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    logprobs, named = token_stats(hidden.unsqueeze(0), ids.unsqueeze(0), mask, head, 1.0, wanted)
    pulled = [named[one.name] for one in wanted if one.differentiable]
    chosen = torch.arange(len(ids)) % round(1 / CHOSEN) == 0
    return logprobs[0] + sum((torch.where(chosen, one[0], 0.0) for one in pulled), torch.zeros(()))


def peak() -> int:
    """The highest memory of this process so far [bytes]."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def work(way: str, vocabulary: int, tokens: int, width: int) -> None:
    """Wait for a line, run once, answer with seconds and memory; in a process of its own."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False)
    torch.nn.init.normal_(head.weight, std=0.05, generator=generator)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    ids = torch.randint(vocabulary, (tokens,), generator=generator)
    weights = torch.linspace(-1, 1, tokens)
    compute: Callable[[], Tensor] = (
        (lambda: plain(hidden, ids, head)) if way == "plain" else (lambda: ours(hidden, ids, head, WAYS[way]))
    )
    # The gradients themselves are no work's memory.
    hidden.grad, head.weight.grad = torch.zeros_like(hidden), torch.zeros_like(head.weight)
    before = peak()
    for _ in sys.stdin:
        began = time.perf_counter()
        (compute() * weights).sum().backward()  # type: ignore[no-untyped-call]
        sys.stdout.write(json.dumps([time.perf_counter() - began, peak() - before]) + "\n")
        sys.stdout.flush()


def measure(vocabulary: int, tokens: int, width: int, rounds: int = ROUNDS) -> dict[str, tuple[float, int]]:
    """Median seconds, and memory [bytes], of each way."""
    sizes = [str(number) for number in (vocabulary, tokens, width)]
    started = {
        way: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.head", "--work", way, *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for way in ("plain", *WAYS)
    }
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in started}
    for _ in range(rounds + 1):
        for way, process in started.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            found[way].append(tuple(json.loads(process.stdout.readline())))
    for process in started.values():
        process.kill()
    # The first round is the libraries' own beginning.
    return {way: (statistics.median(s for s, _ in of[1:]), of[-1][1]) for way, of in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        way, *sizes = given.work
        work(way, *(int(size) for size in sizes))
        return
    found = measure(given.vocabulary, given.tokens, given.hidden, given.rounds)
    seconds, memory = found["plain"]
    print(f"V {given.vocabulary:,}, T {given.tokens:,}, H {given.hidden}; {torch.get_num_threads()} threads")
    for way, (own, more) in found.items():
        print(f"{way:22} {own:7.2f} s {own / seconds:5.2f}  {more / 1e6:7.0f} MB {more / memory:5.2f}")


if __name__ == "__main__":
    main()
