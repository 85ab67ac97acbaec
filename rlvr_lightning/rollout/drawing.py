"""Prompts in, graded responses out: what training, validation and benchmarks have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import Draws
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.types import Episode, Generation, GenerationRequest, Prompt, Rollout, SamplingSpec
from rlvr_lightning.verifiers.grading import Grading, grade
from rlvr_lightning.verifiers.judging import Judgement
from rlvr_lightning.verifiers.pool import VerifierPool

Phase = Callable[[str], None]
Judged = Future[Judgement]


def _unheard(phase: str) -> None:
    """Nobody asks what is going on."""


class Drawing:
    """Draws responses and has them judged.

    Args:
        source: for the tokenizer.
        engine: is asked for responses.
        pool: judges.
        grading: what becomes of verdicts.
        seed: of the run; each response's own seed derives from it.
        phase: told what is going on.
    """

    def __init__(
        self,
        source: ModelSource,
        engine: Draws,
        pool: VerifierPool,
        grading: Grading,
        seed: int,
        phase: Phase = _unheard,
    ) -> None:
        self.source, self.engine, self.pool = source, engine, pool
        self.grading, self.seed, self.phase = grading, seed, phase
        # Of the last call [seconds].
        self.sampling_s = self.verifying_s = 0.0

    def request(self, prompt: Prompt, sample: int, purpose: str) -> GenerationRequest:
        """What an engine is asked for; `purpose` is part of the response's seed."""
        return GenerationRequest(prompt.token_ids, derived_seed(self.seed, purpose, prompt.index, sample))

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
        requests = [self.request(prompt, sample, purpose) for prompt, sample in pairs]
        began = time.perf_counter()
        found: dict[int, Rollout] = {}
        judged: dict[int, Judged] = {}
        for place, drawn in self.engine.stream(requests, sampling):
            found[place] = self.rollout(*pairs[place], drawn)
            # Where others judge, they begin with those that end first.
            if self.pool.is_apart:
                judged[place] = self.judge(found[place])
        self.sampling_s = time.perf_counter() - began
        order = range(len(pairs))
        return self.graded([found[place] for place in order], [judged[place] for place in order if place in judged])

    def rollout(self, prompt: Prompt, sample: int, drawn: Generation) -> Rollout:
        """A response that is not judged.

        Raises:
            RolloutError: it is empty.
        """
        if not drawn.token_ids:
            raise RolloutError("the engine drew an empty response")
        text = self.source.tokenizer.decode(list(drawn.token_ids), skip_special_tokens=True)
        return Rollout(prompt, sample, Episode.of(drawn), text)

    def judge(self, rollout: Rollout) -> Judged:
        """Have a response judged."""
        return self.pool.submit(rollout.text, rollout.prompt.problem)

    def graded(self, rollouts: Sequence[Rollout], judged: Sequence[Judged]) -> list[Rollout]:
        """Responses with their verdicts.

        Args:
            rollouts: that are not judged.
            judged: what judging them comes to; nothing where it has not begun.
        """
        self.phase("verifying")
        began = time.perf_counter()
        graded = grade(rollouts, self.pool, self.grading, judged)
        self.verifying_s = time.perf_counter() - began
        return graded
