"""Out-of-tree components that fail on one rank, for `test_failures.py`."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from torch import Tensor

from rlvr_lightning.errors import DataError
from rlvr_lightning.protocols import Regularizer
from rlvr_lightning.rollout.canary import PROMPTS, TOKENS
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.tasks.arithmetic import Arithmetic
from rlvr_lightning.types import Generation, GenerationRequest, Problem, SamplingSpec, TokenStats, TokenTerm


def this_rank() -> int:
    """As launchers tell it, before any process group exists."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def burn(*_: object) -> Tensor:
    raise RuntimeError("gradients are on fire")


class FaultyEngine(TransformersEngine):
    """Fails on one rank, before phase `phase` (0 is the held-out problems before training)."""

    def __init__(self, fault: str, rank: int = 1, phase: int = 2) -> None:
        super().__init__()
        self.fault, self.phase, self.mine, self.drawn = fault, phase, this_rank() == rank, 0
        if self.mine and fault == "build":
            raise RuntimeError("the engine cannot be built")

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        if (
            len(requests) == PROMPTS and sampling.max_new_tokens == TOKENS
        ):  # what compares engine and trainer after a sync
            yield from super().stream(requests, sampling)
            return
        due, self.drawn = self.mine and self.drawn == self.phase, self.drawn + 1
        if due and self.fault == "raise":
            raise RuntimeError("the engine is on fire")
        if due and self.fault == "disk":  # the next write of this process fails
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        if due and self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if due and self.fault == "exit":
            sys.exit(7)
        if due and self.fault == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if due and self.fault == "hang":
            threading.Event().wait()
        yield from super().stream(requests, sampling)


class FaultyTask(Arithmetic):
    """Has no problems on rank 1."""

    def train(self) -> Sequence[Problem]:
        """Raise there."""
        if this_rank() == 1:
            raise DataError("train.jsonl:7: this machine's disk has another file")
        return super().train()


class FaultyTerm(Regularizer):
    """Fails in the backward pass of one rank's fifth micro-batch."""

    def __init__(self, rank: int = 1) -> None:
        self.rank = rank
        self.calls = 0

    def __call__(self, stats: TokenStats, part_ids: Tensor, planned: Tensor) -> tuple[TokenTerm, ...]:
        """Nothing."""
        self.calls += 1
        values = stats.logprobs * 0
        if values.requires_grad and this_rank() == self.rank and self.calls == 5:
            values.register_hook(burn)
        return (TokenTerm("faulty", values),)
