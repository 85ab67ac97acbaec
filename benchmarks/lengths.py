"""Computed tokens for one that is real, where responses are of very different lengths: counted, nothing is computed.

    python benchmarks/lengths.py
    python benchmarks/lengths.py --responses 512 --ranks 8 --budget 32768

The sample is log-normal, 9k tokens in the mean and cut at 32k, after prompts of up to 2k.
"""

from __future__ import annotations

import argparse

import torch

from rlvr_lightning.rollout.balance import assign, cost
from rlvr_lightning.rollout.micro_batches import Budget, bins, sorted_by_length


def sample(responses: int, seed: int) -> list[int]:
    """Prompt and response together [tokens]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.exp(8.8 + 0.8 * torch.randn(responses, generator=generator)).clamp(1, 32768)
    return [int(length) for length in lengths + torch.randint(64, 2048, (responses,), generator=generator)]


def computed(share: list[int], micros: list[list[int]], *, packed: bool) -> int:
    """Tokens of the micro-batches, padding included."""
    held = [[share[place] for place in micro] for micro in micros if micro]
    return sum(sum(micro) if packed else len(micro) * max(micro) for micro in held)


def main() -> None:
    """Print a line for each layout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=int, default=512, help="of an optimizer step, over all ranks")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--budget", type=int, default=65536, help="trainer.micro_batch_tokens")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    lengths, budget = sample(settings.responses, settings.seed), Budget(settings.budget)
    owners = assign(lengths, settings.ranks)
    shares = [
        [length for length, owner in zip(lengths, owners, strict=True) if owner == rank]
        for rank in range(settings.ranks)
    ]
    costs = [sum(map(cost, share)) for share in shares]
    real = sum(lengths)
    print(
        f"{settings.responses} responses, {real:,} tokens, {real / len(lengths):,.0f} in the mean, {settings.ranks} ranks"
    )
    print(f"the busiest rank has {max(costs) / min(costs):.4f} times the work of the idlest")
    print(f"one padded block      {len(lengths) * max(lengths) / real:.3f}")
    for name, lay_out, packed in (("sorted and padded", sorted_by_length, False), ("packed", bins, True)):
        most = max(len(lay_out(share, budget)) for share in shares)
        tokens = sum(computed(share, lay_out(share, budget, most), packed=packed) for share in shares)
        print(
            f"{name:21} {tokens / real:.3f} in {most} micro-batches of at most {settings.budget:,} tokens on each rank"
        )


if __name__ == "__main__":
    main()
