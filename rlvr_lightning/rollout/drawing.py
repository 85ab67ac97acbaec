"""Prompts in, graded responses out: what training, validation and benchmarks have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import RolloutEngine, StreamingEngine
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.types import Episode, Generation, GenerationRequest, Prompt, Rollout, SamplingSpec
from rlvr_lightning.verifiers.grading import Grading, grade
from rlvr_lightning.verifiers.pool import VerifierPool

Phase = Callable[[str], None]


def _unheard(phase: str) -> None:
    """Nobody asks what is going on."""


class Drawing:
    """Draws responses and has them judged.

    Args:
        source: for the tokenizer.
        engine: draws; it must hold the weights that are asked for.
        pool: judges.
        grading: what becomes of verdicts.
        seed: of the run; each response's own seed derives from it.
        phase: told what is going on.
    """

    def __init__(
        self,
        source: ModelSource,
        engine: RolloutEngine,
        pool: VerifierPool,
        grading: Grading,
        seed: int,
        phase: Phase = _unheard,
    ) -> None:
        self.source, self.engine, self.pool = source, engine, pool
        self.grading, self.seed, self.phase = grading, seed, phase
        # Of the last call [seconds].
        self.sampling_s = self.verifying_s = 0.0

    def draw(self, prompts: Sequence[Prompt], samples: int, sampling: SamplingSpec, purpose: str) -> list[Rollout]:
        """Graded responses, `samples` for each prompt, group after group.

        Args:
            prompts: to respond to.
            samples: responses to each.
            sampling: how they are drawn.
            purpose: `train`, `held-out` or a benchmark, part of every response's seed.

        Raises:
            RolloutError: the engine drew nothing for a prompt.
        """
        self.phase("sampling")
        pairs = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        requests = [
            GenerationRequest(prompt.token_ids, derived_seed(self.seed, purpose, prompt.index, sample))
            for prompt, sample in pairs
        ]
        began = time.perf_counter()
        drawn = self._generate(requests, pairs, sampling)
        self.sampling_s = time.perf_counter() - began
        rollouts = [
            Rollout(prompt, sample, Episode.of(generation), text)
            for (prompt, sample), (generation, text) in zip(pairs, drawn, strict=True)
        ]
        self.phase("verifying")
        began = time.perf_counter()
        graded = grade(rollouts, self.pool, self.grading)
        self.verifying_s = time.perf_counter() - began
        return graded

    def _generate(
        self, requests: Sequence[GenerationRequest], pairs: Sequence[tuple[Prompt, int]], sampling: SamplingSpec
    ) -> list[tuple[Generation, str]]:
        """Each response and its text. Where others judge, they begin with those that end first."""
        found: dict[int, tuple[Generation, str]] = {}
        engine, apart = self.engine, self.pool.is_apart
        streams = engine.stream if apart and isinstance(engine, StreamingEngine) else self._at_once
        for place, generation in streams(requests, sampling):
            if not generation.token_ids:
                raise RolloutError("the engine drew an empty response")
            text = self.source.tokenizer.decode(list(generation.token_ids), skip_special_tokens=True)
            found[place] = generation, text
            if apart:
                # Asked for again when all are there, which gives the same judgement.
                self.pool.submit(text, pairs[place][0].problem)
        return [found[place] for place in range(len(requests))]

    def _at_once(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSpec
    ) -> Iterator[tuple[int, Generation]]:
        return iter([*enumerate(self.engine.generate(requests, sampling))])
