"""What it costs to give an engine the policy's weights: time in copies of their bytes, and memory.

python benchmarks/sync.py DIR --engine vllm
python benchmarks/sync.py DIR --engine vllm_server
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.weight_sums import PolicyWeights

ROUNDS = 5


def resident() -> int:
    """Memory of this process [bytes], shared pages aside."""
    pages, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (pages - shared) * 4096


def measured(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and memory at its highest above what it was before [bytes]."""
    done, before, highest = threading.Event(), resident(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return seconds, highest[0]


def build(name: str) -> Any:
    """The engine."""
    if name == "vllm":
        from rlvr_lightning.rollout.engines.vllm.in_process import VLLMEngine

        return VLLMEngine(max_num_seqs=16)
    from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine

    return VLLMServerEngine(max_num_seqs=16, log_folder=tempfile.mkdtemp())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--engine", choices=("vllm", "vllm_server"), default="vllm")
    given = parser.parse_args()
    source = ModelSource(given.model)
    engine = build(given.engine)
    engine.start(source, torch.device("cpu"), 256, torch.float32)
    try:
        policy = Policy(source)
        tensors = [weight for _, weight in policy.full_weights()]
        size, largest = sum(t.nbytes for t in tensors), max(t.nbytes for t in tensors)
        targets = [torch.empty_like(t) for t in tensors]

        def copy() -> None:
            for target, tensor in zip(targets, tensors, strict=True):
                target.copy_(tensor)

        copy()
        one = statistics.median(measured(copy)[0] for _ in range(ROUNDS))
        del targets
        weights = PolicyWeights(cast(Any, SimpleNamespace(policy=policy)), torch.float32)
        rounds = [measured(lambda version=version: engine.sync(weights, version)) for version in range(ROUNDS + 1)][1:]
        seconds, extra = statistics.median(s for s, _ in rounds), max(memory for _, memory in rounds)
        print(f"{size / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB; one copy {one:.3f} s")
        print(f"sync {seconds:.3f} s = {seconds / one:.1f} copies; at most {extra / 1e6:.0f} MB more in this process")
    finally:
        engine.close()


if __name__ == "__main__":
    main()
