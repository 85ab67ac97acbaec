"""Prompts in, graded responses out: what training, validation and benchmarks have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import RolloutEngine
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.types import GenerationRequest, Prompt, Rollout, SamplingSpec
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
        drawn = self.engine.generate(requests, sampling)
        self.sampling_s = time.perf_counter() - began
        if not all(generation.token_ids for generation in drawn):
            raise RolloutError("the engine drew an empty response")
        texts = self.source.tokenizer.batch_decode(
            [list(generation.token_ids) for generation in drawn], skip_special_tokens=True
        )
        rollouts = [
            Rollout(prompt, sample, generation, text, self.engine.policy_version)
            for (prompt, sample), generation, text in zip(pairs, drawn, texts, strict=True)
        ]
        self.phase("verifying")
        began = time.perf_counter()
        graded = grade(rollouts, self.pool, self.grading)
        self.verifying_s = time.perf_counter() - began
        return graded
