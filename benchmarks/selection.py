"""What choosing tokens costs: the share of an optimizer step spent on quantiles and top-k sets.

    python benchmarks/selection.py                      # a million tokens, V = 32,000: 19 minutes a variant on two cores
    python benchmarks/selection.py --tokens 65536       # the same in three minutes
    python benchmarks/selection.py --device cuda

A step here is what the objective adds to a transformer: from hidden states through the logits (in chunks, made again in
the backward pass) to loss and gradient, off-policy: once for the old policy, once for the current one. The transformer
itself is left out, so the share in a real run is smaller than what is printed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

# As the command line does, before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
import torch

from rlvr_lightning.methods.aggregators import SequenceMeanTokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.types import Pass, TokenStats

VOCABULARY, HIDDEN, LENGTH = 32_000, 64, 4096


def objective(variant: Any) -> Objective:
    """Archer with Lp-Reg, without a reference model."""
    constraint = ClipKL({"knowledge": 0.2, "reasoning": 0.5}, {"knowledge": 0.2, "reasoning": 0.5}, 10.0)
    regularizers = {"lp_reg": LpReg(0.01, variant=variant)}
    return Objective(EntropyQuantile(0.8, variant=variant), constraint, regularizers, SequenceMeanTokenMean())


def timed(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result, and how long it took [s]."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    result = function()
    synchronize()
    return result, time.perf_counter() - start


def step(variant: Any, tokens: int, device: torch.device) -> tuple[float, float]:
    """Time of a whole step and of its selection [s]."""
    torch.manual_seed(0)
    rows = max(tokens // LENGTH, 1)
    length = tokens // rows
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).to(device)
    hidden = 4 * torch.randn(rows, length, HIDDEN, device=device)
    ids = torch.randint(VOCABULARY, (rows, length), device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    advantages = torch.randn(rows, 1, device=device).expand(rows, length)
    loss_of = objective(variant)

    def scored(values: torch.Tensor, which: Pass, old: Any = None) -> Any:
        wanted = [statistic for statistic in loss_of.requires if which in statistic.passes]
        return token_stats(values, ids, mask, head, 1.0, wanted, old)

    def before() -> Any:
        with torch.no_grad():
            return scored(hidden + 0.05 * torch.randn_like(hidden), "rollout")

    (old_logprobs, old_statistics), scoring = timed(before, device)
    leaf = hidden.requires_grad_()
    (logprobs, statistics), forward = timed(lambda: scored(leaf, "update", old_statistics), device)
    stats = TokenStats(logprobs, old_logprobs, advantages, mask, statistics=statistics, old_statistics=old_statistics)
    plan, selection = timed(lambda: loss_of.plan(stats, Step()), device)
    _, backward = timed(lambda: loss_of(stats, plan).loss.backward(), device)
    return scoring + forward + selection + backward, selection


def main() -> None:
    """Measure both variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", nargs="+", default=["paper", "reference"])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for variant in arguments.variants:
        whole, selection = step(variant, arguments.tokens, device)
        print(
            f"archer + lp_reg, {variant}: {arguments.tokens:,} tokens, V = {VOCABULARY:,}, float32, {device}: "
            f"step {whole:.1f} s, selection {selection:.3f} s, {100 * selection / whole:.2f} %"
        )


if __name__ == "__main__":
    main()
