"""Responses are judged while others are still being drawn, and come out the same as if they were not."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import StreamingEngine
from rlvr_lightning.rollout.drawing import Drawing
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.rollout.prompts import PromptSource
from rlvr_lightning.rollout.streams import stream_of
from rlvr_lightning.tasks.arithmetic import Arithmetic
from rlvr_lightning.types import Generation, GenerationRequest, Problem, Rollout, SamplingSpec, Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier
from rlvr_lightning.verifiers.grading import Grading
from rlvr_lightning.verifiers.pool import VerifierPool, Workers

SOURCE = ModelSource()
SAMPLING = SamplingSpec(1.0, 40, SOURCE.stop_token_ids())
PROMPTS = PromptSource(Arithmetic(num_held_out=5).held_out(), SOURCE.tokenizer, 0, 99, "error").in_order()


class Waiting(TransformersEngine):
    """Does not hand the last response over before another one has been judged."""

    def __init__(self, judged: threading.Event) -> None:
        super().__init__(batch_size=4)
        self.judged = judged

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        for count, ended in enumerate(super().stream(requests, sampling), 1):
            assert count < len(requests) or self.judged.wait(60)
            yield ended


class Telling:
    """Judges in one thread, and says so."""

    concurrency = 1

    def __init__(self, judged: threading.Event) -> None:
        self.judged = judged

    def __call__(self, response: str, problem: Problem) -> Verdict:
        self.judged.set()
        return Verdict(1.0, True)


class AtOnce:
    """An engine that hands everything over at the end."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.policy_version = engine, engine.policy_version
        self.start, self.sync, self.close = engine.start, engine.sync, engine.close

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        return self.engine.generate(requests, sampling)


def started(engine: TransformersEngine) -> TransformersEngine:
    engine.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    return engine


def test_judging_begins_before_sampling_ends() -> None:
    judged = threading.Event()
    pool = VerifierPool(Telling(judged))
    drawing = Drawing(SOURCE, started(Waiting(judged)), pool, Grading(), 0)
    drawn = drawing.draw(PROMPTS, 2, SAMPLING, "train")
    pool.close()
    assert [rollout.kind for rollout in drawn] == ["correct"] * 10


@pytest.mark.parametrize("workers", [1, 2])
def test_the_responses_are_the_same(workers: Workers) -> None:
    engine = started(TransformersEngine(batch_size=3))
    assert isinstance(engine, StreamingEngine)
    assert not isinstance(AtOnce(engine), StreamingEngine)

    def drawn(engine: TransformersEngine | AtOnce, workers: Workers) -> list[Rollout]:
        pool = VerifierPool(ExactVerifier(), workers)
        found = Drawing(SOURCE, stream_of(engine), pool, Grading(), 0).draw(PROMPTS, 4, SAMPLING, "train")
        pool.close()
        return found

    plain = drawn(AtOnce(engine), 0)
    assert [(one.prompt.index, one.sample) for one in plain] == [(i, j) for i in range(5) for j in range(4)]
    assert {one.kind for one in plain} == {"correct", "wrong"}
    assert plain == drawn(engine, 0) == drawn(engine, workers) == drawn(AtOnce(engine), workers)


class Empty(TransformersEngine):
    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        for place, _ in enumerate(requests):
            yield place, Generation((), (), "stop", 0)


def test_an_empty_response_is_no_response() -> None:
    pool = VerifierPool(ExactVerifier(), 1)
    with pytest.raises(RolloutError, match="the engine drew an empty response"):
        Drawing(SOURCE, Empty(), pool, Grading(), 0).draw(PROMPTS, 1, SAMPLING, "train")
    pool.close()
