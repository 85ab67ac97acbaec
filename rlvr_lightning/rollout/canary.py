"""After each sync a few fixed prompts are answered by the engine and scored by the trainer: does it hold the policy?

Weights that did not arrive, or arrived in the wrong place, change nothing that a run would notice by itself: it goes on
learning from another policy's responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError, EngineLostError, RolloutError
from rlvr_lightning.protocols import (
    ApartEngine,
    Draws,
    RecordedEngine,
    RolloutEngine,
    SummedEngine,
    TrainedModule,
    TypedEngine,
)
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.rollout.gathering import from_all_ranks, place_among_ranks
from rlvr_lightning.rollout.streams import stream_of
from rlvr_lightning.rollout.weight_sums import Compared, Summed, compare
from rlvr_lightning.types import Generation, GenerationRequest, Prompt, Row, SamplingSpec

Tolerance = float | Literal["auto"]
PROMPTS, TOKENS = 4, 8
# Mean difference of log-probabilities that two ways of computing the same policy make [nats]: float32 agrees to 1e-5
# (measured), bfloat16 to about 0.01.
EXACT, ROUNDED = 1e-4, 0.05


def check_tolerance(tolerance: Any) -> None:
    """Is it one?

    Raises:
        ConfigError: it is not.
    """
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if tolerance != "auto" and not (number and tolerance > 0):
        raise ConfigError(f"rollout.canary_tolerance must be auto or above 0 [nats]; got {tolerance!r}")


class Canary:
    """Compares engine and trainer.

    Args:
        prompts: some of the run's.
        sampling: the run's.
        tolerance: mean difference of log-probabilities above which the run stops [nats]; `auto` goes by what both compute
            in.
        pad_token_id: fills the padding.
    """

    def __init__(
        self, prompts: Sequence[Prompt], sampling: SamplingSpec, tolerance: Tolerance, pad_token_id: int
    ) -> None:
        self.prompts, self.sampling, self.tolerance, self.pad_token_id = prompts, sampling, tolerance, pad_token_id
        # Of the last sync: mean and largest difference over all ranks [nats], and the answers of the last copy looked at.
        self.gap = self.gap_max = 0.0
        self.drawn: list[Generation] = []

    def check(self, engine: RolloutEngine, module: TrainedModule, sums: Mapping[str, Summed]) -> bool:
        """Every rank must call it, right after a sync.

        Args:
            engine: that has been given weights.
            module: whose weights they are.
            sums: of the weights, by name, as they were given.

        Returns:
            Whether there was an engine to look at: it may be lost at any moment.

        Raises:
            RolloutError: on every rank, where one engine does not hold the module's policy.
        """
        requests = [GenerationRequest(prompt.token_ids, seed) for seed, prompt in enumerate(self.prompts)]
        answers = self._answers(engine, requests, module.policy_version)
        if answers is None:
            return False
        self.drawn = answers[-1]
        differences = [self._difference(requests, answered, module) for answered in answers]
        total = torch.stack([torch.stack([each.sum(), each.max(), torch.tensor(each.numel())]) for each in differences])
        of_all = torch.tensor(from_all_ranks(total.tolist()), dtype=torch.float64)
        self.gap = float((of_all[:, 0] / of_all[:, 2]).max())
        self.gap_max = float(of_all[:, 1].max())
        dtype = engine.weights_dtype if isinstance(engine, TypedEngine) else module.compute_dtype
        allowed = self._allowed(module.compute_dtype, dtype)
        fits = self.gap <= allowed  # nor does it where it is nan
        if isinstance(engine, RecordedEngine):
            engine.on_policy = fits
            return True
        told = self._told_of_weights(engine, sums)
        if told is not None and (told.differ or not fits):
            raise RolloutError(self._stale(module.policy_version, allowed, str(told)))
        if not fits:
            raise RolloutError(
                self._stale(module.policy_version, allowed, "this engine does not tell which weights it holds")
            )
        return True

    def _stale(self, version: int, allowed: float, suspects: str) -> str:
        return (
            f"after the sync at step {version} the engine draws from another policy than the trainer's: {suspects}; their "
            f"log-probabilities differ by {self.gap:.2g} nats in the mean (rollout.canary_tolerance: {allowed:g})"
        )

    def _told_of_weights(self, engine: RolloutEngine, sums: Mapping[str, Summed]) -> Compared | None:
        """What the engine's weights add up to, compared with the policy's; of the copy that is furthest off, on all ranks."""
        if not isinstance(engine, SummedEngine) or not sums:
            return None
        mine = [compare(sums, workers) for workers in engine.weight_sums()]
        every = from_all_ranks(mine)
        return max(every, key=lambda one: len(one.differ)) if every else None

    def _answers(
        self, engine: RolloutEngine, requests: Sequence[GenerationRequest], version: int
    ) -> list[list[Generation]] | None:
        """Of the copies of the policy this rank looks at: as many on every rank, since scoring is a collective. None on all
        ranks where one of them finds the engine lost.
        """
        if isinstance(engine, RecordedEngine):
            # Nothing recorded is another policy: an answer that nobody gives.
            impossible = [Generation(request.token_ids[:1], (-math.inf,), "length", version) for request in requests]
            return [engine.canary(version)[: len(requests)] or impossible]
        sampling = replace(self.sampling, max_new_tokens=min(TOKENS, self.sampling.max_new_tokens))
        if not isinstance(engine, ApartEngine):
            return [_in_order(stream_of(engine), requests, sampling)]
        copies, (rank, ranks), lost = engine.replicas(), place_among_ranks(), False
        found: list[list[Generation]] = []
        try:
            for turn in range(-(-len(copies) // ranks)):
                found.append(_in_order(copies[(rank + turn * ranks) % len(copies)], requests, sampling))
        except EngineLostError:
            lost = True
        return None if any(from_all_ranks([lost])) else found

    def _difference(
        self, requests: Sequence[GenerationRequest], drawn: Sequence[Generation], module: TrainedModule
    ) -> Tensor:
        rows = []
        for place, (request, answer) in enumerate(zip(requests, drawn, strict=True)):
            before = torch.zeros(len(request.token_ids) - 1)
            logprobs = torch.cat([before, torch.tensor(answer.logprobs)])
            ids, nothing = torch.tensor(request.token_ids + answer.token_ids), torch.zeros_like(logprobs)
            mask = torch.arange(len(logprobs)) >= len(before)
            rows.append(Row(0, place, ids, mask, nothing, logprobs, nothing))
        batch = collate(rows, self.pad_token_id, packed=False)
        scored = module.score(batch, on_policy=False).old_logprobs
        assert scored is not None
        return (scored.double() - batch.rollout_logprobs.double()).abs()[batch.loss_mask]

    def _allowed(self, trainers: torch.dtype, engines: torch.dtype) -> float:
        if self.tolerance != "auto":
            return self.tolerance
        return EXACT if trainers == engines == torch.float32 else ROUNDED


def _in_order(asked: Draws, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
    drawn = dict(asked.stream(requests, sampling))
    return [drawn[place] for place in range(len(requests))]
