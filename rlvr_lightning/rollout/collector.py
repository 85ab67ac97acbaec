"""One rollout phase: sample, verify, turn into the tensors of each optimizer step, and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from rlvr_lightning.errors import RolloutError
from rlvr_lightning.models import ModelSource
from rlvr_lightning.protocols import AdvantageEstimator, RolloutEngine, Verifier
from rlvr_lightning.rollout.batching import equal_groups, is_usable, make_batch, rewards_of
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.step import Step
from rlvr_lightning.types import GenerationRequest, Prompt, Rollout, SamplingSpec, TokenBatch
from rlvr_lightning.verifiers.grading import grade

Phase = Callable[[str], None]


@dataclass
class RolloutReport:
    """Sums over this rank's rollouts; `metrics` are means over all ranks."""

    totals: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Add to one sum."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def metrics(self, device: torch.device) -> dict[str, float]:
        """Means over all ranks, by their logged names. Every rank must call it."""
        names = sorted(self.totals)
        held = torch.tensor([self.totals[name] for name in names], dtype=torch.float64)
        # Collectives of an accelerator want its own tensors, and not every accelerator has float64.
        summed = Step().sum(held.to(device, torch.float32 if device.type == "mps" else torch.float64))
        total = dict(zip(names, summed.tolist(), strict=True))
        responses, graded = max(total["responses"], 1), max(total["graded"], 1)
        return {
            "reward/mean": total["reward"] / graded,
            "rollout/accuracy": total["correct"] / graded,
            "rollout/responses": total["responses"],
            "rollout/response_tokens": total["tokens"] / responses,
            "rollout/truncated": total["truncated"] / responses,
            "rollout/equal_groups": total["equal_groups"] / max(total["groups"], 1),
            "rollout/dropped": total["dropped"],
            "verifier/errors": total["errors"],
            "perf/sampling_tokens_per_s": total["tokens"] / max(total["sampling_s"], 1e-9) * total["ranks"],
        }


class Collector:
    """Draws and grades groups of responses.

    Args:
        source: of the tokenizer.
        engine: draws.
        verifier: judges.
        advantage: rewards to advantages.
        sampling: how responses are drawn.
        group_size: responses a prompt.
        seed: of the run; each response's own seed derives from it.
        phase: told what is going on.
    """

    def __init__(
        self,
        source: ModelSource,
        engine: RolloutEngine,
        verifier: Verifier,
        advantage: AdvantageEstimator,
        sampling: SamplingSpec,
        group_size: int,
        seed: int,
        phase: Phase,
    ) -> None:
        self.source, self.engine, self.verifier, self.advantage = source, engine, verifier, advantage
        self.sampling, self.group_size, self.seed, self.phase = sampling, group_size, seed, phase

    def draw(self, prompts: Sequence[Prompt], samples: int, purpose: str) -> list[Rollout]:
        """Graded responses, `samples` for each prompt, group after group.

        Raises:
            RolloutError: the engine holds other weights than it was last synced with, or drew nothing for a prompt.
        """
        self.phase("sampling")
        pairs = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        requests = [
            GenerationRequest(prompt.token_ids, derived_seed(self.seed, purpose, prompt.index, sample))
            for prompt, sample in pairs
        ]
        drawn = self.engine.generate(requests, self.sampling)
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
        return grade(rollouts, self.verifier)

    def collect(
        self, prompts: Sequence[Sequence[Prompt]], *, drop_equal_groups: bool
    ) -> tuple[list[list[Rollout]], list[TokenBatch], RolloutReport]:
        """Rollouts and tensors of each optimizer step, and what there is to report."""
        start = time.perf_counter()
        drawn = self.draw([p for step in prompts for p in step], self.group_size, "train")
        seconds = time.perf_counter() - start
        groups, steps, report = [], [], RolloutReport()
        report.add("sampling_s", seconds)
        report.add("ranks", 1)
        for step in prompts:
            rollouts, drawn = drawn[: len(step) * self.group_size], drawn[len(step) * self.group_size :]
            pad = int(self.source.tokenizer.pad_token_id)
            batch = make_batch(
                rollouts, self.group_size, self.advantage, pad, self.seed, drop_equal_groups=drop_equal_groups
            )
            groups.append(rollouts)
            steps.append(batch)
            self._count(report, rollouts)
        return groups, steps, report

    def _count(self, report: RolloutReport, rollouts: Sequence[Rollout]) -> None:
        verdicts = [rollout.verdict for rollout in rollouts if rollout.verdict is not None]
        report.add("responses", len(rollouts))
        report.add("graded", len(verdicts))
        report.add("reward", sum(verdict.reward for verdict in verdicts))
        report.add("correct", sum(verdict.correct for verdict in verdicts))
        report.add("tokens", sum(len(rollout.generation.token_ids) for rollout in rollouts))
        report.add("truncated", sum(rollout.generation.finish_reason == "length" for rollout in rollouts))
        report.add("errors", sum(rollout.error is not None for rollout in rollouts))
        report.add("dropped", sum(not is_usable(rollout) for rollout in rollouts))
        equal = equal_groups(*rewards_of(rollouts, self.group_size))
        report.add("groups", len(equal))
        report.add("equal_groups", float(equal.sum()))
