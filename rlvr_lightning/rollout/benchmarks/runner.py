"""Draws a policy's responses to benchmarks, a part at a time, each part kept before the next one is begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import DataError
from rlvr_lightning.evaluation.benchmarks.benchmark import Benchmark
from rlvr_lightning.evaluation.benchmarks.results import Measured
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import RolloutEngine
from rlvr_lightning.rollout.benchmarks.kept import KeptResponses, Record
from rlvr_lightning.rollout.drawing import Drawing
from rlvr_lightning.rollout.failing import check_errors
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.rollout.prompts import tokenize
from rlvr_lightning.rollout.streams import stream_of
from rlvr_lightning.tasks.outcomes import cluster_of
from rlvr_lightning.types import Outcomes, Prompt, Rollout, SamplingSpec
from rlvr_lightning.verifiers.grading import Grading
from rlvr_lightning.verifiers.pool import VerifierPool

# Told after each part: the benchmark, responses there are, responses there will be.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Ready:
    """A benchmark with its prompts and who judges them."""

    benchmark: Benchmark
    prompts: Sequence[Prompt]
    pool: VerifierPool


class BenchmarkRunner:
    """Measures policies on benchmarks.

    Args:
        source: model folder, for the tokenizer.
        engine: draws; it must hold the policy when `measure` is called.
        benchmarks: by name.
        files: folder of the benchmarks' files; None for the hub.
        grading: what becomes of verdicts; only whether a response is right counts here.
        seed: each response's own seed derives from it.
        batch_responses: drawn, over all ranks, before what there is is kept.
        ranks_here: ranks on this machine.

    Raises:
        DataError: a benchmark's problems cannot be had, or a prompt and its response are longer than the model allows.
    """

    def __init__(
        self,
        source: ModelSource,
        engine: RolloutEngine,
        benchmarks: Mapping[str, Benchmark],
        files: Path | None,
        grading: Grading,
        seed: int = 0,
        batch_responses: int = 1024,
        ranks_here: int = 1,
    ) -> None:
        self.source, self.engine, self.grading, self.seed = source, engine, grading, seed
        self.batch_responses, self.progress = batch_responses, list[Progress]()
        self._ready = {
            name: _Ready(
                benchmark,
                self._prompts(name, benchmark, files),
                VerifierPool(benchmark.verifier, grading.workers, grading.timeout_s, ranks_here),
            )
            for name, benchmark in benchmarks.items()
        }

    @property
    def names(self) -> list[str]:
        """Of the benchmarks, in the order asked for."""
        return list(self._ready)

    @property
    def longest(self) -> int:
        """Of a prompt and its response [tokens]."""
        return max(
            max(len(prompt.token_ids) for prompt in ready.prompts) + ready.benchmark.protocol.max_new_tokens
            for ready in self._ready.values()
        )

    def measure(self, name: str, folder: Path, policy: Mapping[str, Any], ranks: tuple[int, int]) -> Measured:
        """Draw what is not there yet and work out the numbers. Every rank must call it.

        Args:
            name: of the benchmark.
            folder: of this policy's results; responses are kept in `responses/` in it.
            policy: what it is, so that no other one's responses are taken for its.
            ranks: this rank, and how many there are.

        Raises:
            DataError: the responses there were drawn in another way, or are damaged.
            VerifierError: the verifier failed on too many of a part's responses.
        """
        ready, (rank, world) = self._ready[name], ranks
        samples, prompts = ready.benchmark.protocol.samples, ready.prompts
        about = {**ready.benchmark.described(), "seed": self.seed, **policy}
        kept = KeptResponses(folder / "responses", name, about) if rank == 0 else None
        # Read by one rank: the folder may be on its machine alone.
        records = _whole(from_all_ranks([] if kept is None else kept.read()), prompts, samples)
        left = [prompt for prompt in prompts if prompt.problem.id not in records]
        self._tell(name, len(records) * samples)
        part = max(1, self.batch_responses // samples // world) * world
        for first in range(0, len(left), part):
            of_all = left[first : first + part]
            drawn = self._draw(ready, of_all[rank::world], name)
            check_errors(drawn, self.grading.max_error_share)
            new = from_all_ranks([_record(rollout) for rollout in drawn])
            new = [record for prompt in of_all for record in new if record["problem_id"] == prompt.problem.id]
            if kept is not None:
                kept.append(new)
            records.update(_whole(new, of_all, samples))
            self._tell(name, len(records) * samples)
        in_order = [records[prompt.problem.id] for prompt in prompts]
        outcomes = [_outcomes(prompt, mine) for prompt, mine in zip(prompts, in_order, strict=True)]
        return Measured.of(name, [one for mine in in_order for one in mine], outcomes, ready.benchmark.protocol.k)

    def close(self) -> None:
        """End the workers that judge."""
        for ready in self._ready.values():
            ready.pool.close()

    def _draw(self, ready: _Ready, prompts: Sequence[Prompt], name: str) -> list[Rollout]:
        if not prompts:
            return []
        protocol = ready.benchmark.protocol
        stops = self.source.stop_token_ids()
        sampling = SamplingSpec(protocol.temperature, protocol.max_new_tokens, stops, protocol.top_p)
        ready.pool.forget()
        drawing = Drawing(self.source, stream_of(self.engine), ready.pool, self.grading, self.seed)
        return drawing.draw(prompts, protocol.samples, sampling, f"benchmark/{name}")

    def _prompts(self, name: str, benchmark: Benchmark, files: Path | None) -> list[Prompt]:
        room, new = self.source.max_positions(), benchmark.protocol.max_new_tokens
        held, prompts = benchmark.problems(files), []
        tokenized = tokenize([problem for _, problem in held], self.source.tokenizer)
        for (place, problem), token_ids in zip(held, tokenized, strict=True):
            if room is not None and len(token_ids) + new > room:
                raise DataError(
                    f"{name}: the prompt of problem {problem.id} has {len(token_ids)} tokens, and with {new} of a response that is "
                    f"more than the {room} positions of {self.source.path}: set benchmark.{name}.max_new_tokens lower"
                )
            prompts.append(Prompt(problem, token_ids, place))
        return prompts

    def _tell(self, name: str, there: int) -> None:
        ready = self._ready[name]
        for told in self.progress:
            told(name, there, len(ready.prompts) * ready.benchmark.protocol.samples)


def _record(rollout: Rollout) -> Record:
    verdict = rollout.verdict
    return {
        "problem_id": rollout.prompt.problem.id,
        "sample": rollout.sample,
        "response": rollout.text,
        "answer": rollout.prompt.problem.answer,
        "finish_reason": rollout.episode.finish_reason,
        "tokens": rollout.episode.num_written,
        "verdict": rollout.kind,
        "correct": None if verdict is None else verdict.correct,
        "reward": None if verdict is None else verdict.reward,
        "extracted": None if verdict is None else verdict.extracted,
        "error": rollout.error,
    }


def _whole(records: Sequence[Record], prompts: Sequence[Prompt], samples: int) -> dict[str, list[Record]]:
    """Records of those problems asked for that have all their responses, in the order of samples."""
    held: dict[str, dict[int, Record]] = {prompt.problem.id: {} for prompt in prompts}
    for record in records:
        if record["problem_id"] in held:
            held[record["problem_id"]][record["sample"]] = record
    return {name: [mine[i] for i in range(samples)] for name, mine in held.items() if len(mine) == samples}


def _outcomes(prompt: Prompt, records: Sequence[Record]) -> Outcomes:
    correct, rewards = (tuple(record[field] for record in records) for field in ("correct", "reward"))
    return Outcomes(prompt.problem.id, correct, rewards, cluster_of(prompt.problem.meta))
