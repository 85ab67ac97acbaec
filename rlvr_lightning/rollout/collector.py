"""One rollout phase: sample, verify, turn into the tensors of each optimizer step, and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol, runtime_checkable

import torch

from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import AdvantageEstimator, Draws, RewardShaping, Verifier
from rlvr_lightning.rollout.batching import equal_groups, is_cut, is_usable, make_rows, rewards_of, shaped_rewards
from rlvr_lightning.rollout.drawing import Drawing, Phase
from rlvr_lightning.rollout.failing import check_errors
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.rollout.refill import Group, StepCut, refill
from rlvr_lightning.tasks.outcomes import outcomes_of
from rlvr_lightning.types import VERDICT_KINDS, Outcomes, Prompt, Rollout, Row, SamplingSpec
from rlvr_lightning.verifiers.grading import Grading
from rlvr_lightning.verifiers.pool import VerifierPool
from rlvr_lightning.verifiers.protocol import Composed


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
        shaped = {"reward/shaped": total["shaped"] / graded} if "shaped" in total else {}
        return {
            "reward/mean": total["reward"] / graded,
            **shaped,
            "rollout/accuracy": total["correct"] / graded,
            "rollout/responses": total["responses"],
            "rollout/response_tokens": total["tokens"] / responses,
            "rollout/truncated": total["truncated"] / responses,
            "rollout/masked": total["masked"],
            "rollout/lag": total["lag"] / responses,
            "rollout/equal_groups": total["equal_groups"] / max(total["groups"], 1),
            "rollout/dropped": total["dropped"],
            "rollout/generation_batches": total["batches"] / total["ranks"],
            "rollout/refilled_groups": total["refilled"],
            **{f"verifier/{kind}": total[f"kind/{kind}"] / responses for kind in VERDICT_KINDS},
            **{f"verifier/{name}": value / graded for name, value in total.items() if name.startswith("part/")},
            "perf/sampling_tokens_per_s": total["tokens"] / max(total["sampling_s"], 1e-9) * total["ranks"],
            "perf/verifying_s": total["verifying_s"] / total["ranks"],
        }


@runtime_checkable
class GroupSource(Protocol):
    """Where a phase's groups come from.

    Args:
        version: optimizer steps of the policy that learns from them.
    """

    version: int

    def batch(self, number: int) -> list[Rollout]:
        """This rank's graded responses of a batch (0, 1, ...) of the phase, group after group."""
        ...


@dataclass(frozen=True)
class Collected:
    """A rollout phase, this rank's part of it.

    Args:
        rollouts: of each optimizer step, group after group.
        steps: their rows, in the same order.
        report: of all responses drawn: of the groups learned from alone, the mean reward would hardly ever change.
        batches: batches of prompts drawn.
        groups: what became of every group drawn, also of those that nothing is learned from, by its prompt's place.
        ahead: the responses were drawn by other policies than the one that learns from them.
    """

    rollouts: list[list[Rollout]]
    steps: list[list[Row]]
    report: RolloutReport
    batches: int
    groups: dict[int, Outcomes]
    ahead: bool = False


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
        shaping: of the rewards, before the advantage.
        grading: what becomes of verdicts.
        ranks_here: ranks on this machine.
    """

    def __init__(
        self,
        source: ModelSource,
        engine: Draws,
        verifier: Verifier,
        advantage: AdvantageEstimator,
        sampling: SamplingSpec,
        group_size: int,
        seed: int,
        phase: Phase,
        shaping: RewardShaping | None = None,
        grading: Grading | None = None,
        ranks_here: int = 1,
    ) -> None:
        self.advantage, self.sampling, self.group_size, self.seed = advantage, sampling, group_size, seed
        self.shaping, self.grading = shaping, grading or Grading()
        self.pool = VerifierPool(verifier, self.grading.workers, self.grading.timeout_s, ranks_here)
        self.drawing = Drawing(source, engine, self.pool, self.grading, seed, phase)

    def draw(self, prompts: Sequence[Prompt], samples: int, purpose: str) -> list[Rollout]:
        """Graded responses, `samples` for each prompt, group after group.

        Args:
            prompts: to respond to.
            samples: responses to each.
            purpose: `train` or `held-out`, part of every response's seed.
        """
        return self.drawing.draw(prompts, samples, self.sampling, purpose)

    def held_out(self, prompts: Sequence[Prompt], samples: int) -> list[Rollout]:
        """Graded responses to held-out prompts, `samples` for each. Every rank must call it.

        Raises:
            VerifierError: the verifier failed on too many of all ranks'.
        """
        self.pool.forget()
        drawn = self.draw(prompts, samples, "held-out")
        check_errors(drawn, self.grading.max_error_share)
        return drawn

    def collect(
        self,
        source: GroupSource,
        cut: StepCut,
        generation_batches: int,
        *,
        drop_equal_groups: bool,
        mask_truncated: bool,
        ahead: bool = False,
    ) -> Collected:
        """Draw a phase. Every rank must call it.

        Args:
            source: of this rank's groups, batch after batch.
            cut: prompts of a batch, and which of them are this rank's.
            generation_batches: drawn at most; more than one refills what equal rewards leave empty.
            drop_equal_groups: groups of equal rewards carry no weight.
            mask_truncated: responses cut by their length carry no weight.
            ahead: the responses were drawn by earlier policies.

        Raises:
            VerifierError: the verifier failed on too many responses of the phase, of all ranks'.
        """
        self.pool.forget()
        report, every, first = RolloutReport(), list[Rollout](), set[int]()
        mine = partial(self._draw_groups, source, report, every, first)
        of_steps, batches = _groups_of_steps(mine, cut, generation_batches)
        check_errors(every, self.grading.max_error_share)
        rollouts = [list(chain.from_iterable(of_step)) for of_step in of_steps]
        report.add("masked", mask_truncated * sum(map(is_cut, chain.from_iterable(rollouts))))
        report.add("ranks", 1)
        report.add("batches", batches)
        begun_with = set(from_all_ranks(sorted(first))) if batches > 1 else first
        report.add("refilled", sum(group[0].prompt.index not in begun_with for group in chain.from_iterable(of_steps)))
        steps = [
            make_rows(
                of_step,
                self.group_size,
                self.advantage,
                self.seed,
                drop_equal_groups=drop_equal_groups,
                mask_truncated=mask_truncated,
                shaping=self.shaping,
                sampled_ahead=ahead,
            )
            for of_step in rollouts
        ]
        drawn = [every[first : first + self.group_size] for first in range(0, len(every), self.group_size)]
        groups = {group[0].prompt.index: outcomes_of(group) for group in drawn}
        return Collected(rollouts, steps, report, batches, groups, ahead)

    def _draw_groups(
        self, source: GroupSource, report: RolloutReport, every: list[Rollout], first: set[int], batch: int
    ) -> list[Group]:
        """This rank's groups of a batch (0, 1, ...) of the phase; its responses are added to `every`."""
        drawn = source.batch(batch)
        report.add("sampling_s", self.drawing.sampling_s)
        report.add("verifying_s", self.drawing.verifying_s)
        self._count(report, drawn)
        report.add("lag", sum(source.version - rollout.policy_version for rollout in drawn))
        every += drawn
        if batch == 0:
            first.update(rollout.prompt.index for rollout in drawn)
        return [drawn[row : row + self.group_size] for row in range(0, len(drawn), self.group_size)]

    def _count(self, report: RolloutReport, rollouts: Sequence[Rollout]) -> None:
        verdicts = [rollout.verdict for rollout in rollouts if rollout.verdict is not None]
        report.add("responses", len(rollouts))
        report.add("graded", len(verdicts))
        report.add("reward", sum(verdict.reward for verdict in verdicts))
        report.add("correct", sum(verdict.correct for verdict in verdicts))
        report.add("tokens", sum(rollout.episode.num_written for rollout in rollouts))
        report.add("truncated", sum(map(is_cut, rollouts)))
        for kind in VERDICT_KINDS:
            report.add(f"kind/{kind}", sum(rollout.kind == kind for rollout in rollouts))
        report.add("dropped", sum(not is_usable(rollout) for rollout in rollouts))
        verifier = self.pool.verifier
        for name in verifier.part_names if isinstance(verifier, Composed) else ():
            report.add(f"part/{name}", sum((verdict.parts or {}).get(name, 0.0) for verdict in verdicts))
        rewards, valid = rewards_of(rollouts, self.group_size)
        equal = equal_groups(rewards, valid)
        report.add("groups", len(equal))
        report.add("equal_groups", float(equal.sum()))
        if self.shaping is not None:
            judged = torch.tensor([rollout.verdict is not None for rollout in rollouts]).view_as(rewards)
            report.add("shaped", float(shaped_rewards(rewards, rollouts, self.shaping)[judged].double().sum()))


def _groups_of_steps(
    mine: Callable[[int], list[Group]], cut: StepCut, generation_batches: int
) -> tuple[list[Sequence[Group]], int]:
    """This rank's groups of each optimizer step, and the batches drawn for them."""
    if generation_batches == 1:
        # Every group keeps its place, so nothing has to travel between the ranks.
        groups = mine(0)
        return [groups[first : first + cut.share] for first in range(0, len(groups), cut.share)], 1
    groups, batches = refill(mine, cut.per_epoch, generation_batches)
    return cut.mine(groups), batches
