"""Prompts, padding and files: what stands between a task and the objective."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlvr_lightning.errors import DataError
from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.batching import collate, make_rows, scored_rows
from rlvr_lightning.rollout.collector import Collector
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.rollout.pipeline import OnTheSpot
from rlvr_lightning.rollout.prompts import PromptSource, derived_seed, tokenize
from rlvr_lightning.rollout.refill import StepCut
from rlvr_lightning.rollout.store import rollout_record, write_records
from rlvr_lightning.types import Episode, Generation, GenerationRequest, Problem, Prompt, Rollout, SamplingSpec, Verdict

TOKENIZER = ModelSource().tokenizer


def problem(text: str, answer: str = "1") -> Problem:
    return Problem(text, ({"role": "user", "content": text},), answer)


def rollout(prompt: tuple[int, ...], response: tuple[int, ...], reward: float | None, logprob: float = -0.5) -> Rollout:
    verdict = None if reward is None else Verdict(reward, reward == 1.0, "x")
    episode = Episode.of(Generation(response, (logprob,) * len(response), "stop", 3))
    return Rollout(Prompt(problem("1+1="), prompt, 0), 0, episode, "text", verdict, None if verdict else "Boom: x")


def test_prompt_order_is_a_permutation_of_every_turn_and_of_the_seed() -> None:
    problems = [problem(f"{i}+1=") for i in range(10)]
    source = PromptSource(problems, TOKENIZER, 0, 99, "skip")
    order = [prompt.problem.id for prompt in source.take(0, 20)]
    assert sorted(order[:10]) == sorted(order[10:]) == sorted(p.id for p in problems)
    assert order[:10] != order[10:]
    again = PromptSource(problems, TOKENIZER, 0, 99, "skip")
    assert [prompt.problem.id for prompt in again.take(7, 5)] == order[7:12]
    other = PromptSource(problems, TOKENIZER, 1, 99, "skip")
    assert [prompt.problem.id for prompt in other.take(0, 20)] != order


def test_overlong_prompts_are_counted_or_refused() -> None:
    problems = [problem("1+1="), problem("1+1+1+1+1=")]
    source = PromptSource(problems, TOKENIZER, 0, 8, "skip")
    assert (len(source), source.num_skipped) == (1, 1)
    with pytest.raises(DataError, match=r"prompt of problem 1\+1\+1\+1\+1= has 12 tokens, more than .*=8"):
        PromptSource(problems, TOKENIZER, 0, 8, "error")
    with pytest.raises(DataError, match="no prompt is left: 2 of 2 are longer"):
        PromptSource(problems, TOKENIZER, 0, 2, "skip")


def test_the_chat_template_is_applied_once() -> None:
    (ids,) = tokenize([problem("7+5=")], TOKENIZER)
    assert TOKENIZER.convert_ids_to_tokens(list(ids)) == ["<user>", "7", "+", "5", "=", "<assistant>"]


def test_seeds_differ_by_every_part() -> None:
    seeds = {
        derived_seed(*parts)
        for parts in ((0, "train", 1, 2), (1, "train", 1, 2), (0, "held-out", 1, 2), (0, "train", 2, 1))
    }
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_rows_begin_at_the_first_column_and_are_padded_on_the_right() -> None:
    rollouts = [
        rollout((2, 5), (7, 8, 1), 1.0),
        rollout((2, 5), (7, 1), 0.0, -0.25),
        rollout((2, 5, 6), (9, 9), 1.0),
        rollout((2, 5, 6), (9, 1), 1.0),
    ]
    rows = make_rows(rollouts, 2, GroupRelative(), 0, drop_equal_groups=False)
    batch = collate(rows, 99, packed=False)
    assert batch.input_ids.tolist() == [[2, 5, 7, 8, 1], [2, 5, 7, 1, 99], [2, 5, 6, 9, 9], [2, 5, 6, 9, 1]]
    assert batch.targets[1].tolist() == [5, 7, 1, 99]
    # Each stands one column before its token, where the state that scores it is.
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    advantage = 0.5 / (math.sqrt(0.5) + 1e-6)
    expected = torch.tensor([[0.0, *[advantage] * 3], [0.0, -advantage, -advantage, 0.0]])
    torch.testing.assert_close(batch.advantages[:2], expected)
    assert batch.advantages[2:].abs().max() == 0
    assert batch.rollout_logprobs[1].tolist() == [0.0, -0.25, -0.25, 0.0]
    assert batch.segments is None


def test_packed_rows_lie_one_after_another() -> None:
    rollouts = [rollout((2, 5), (7, 8, 1), 1.0), rollout((3,), (9, 1), 0.0, -0.25)]
    rows = make_rows(rollouts, 2, GroupRelative(), 0, drop_equal_groups=False)
    batch = collate(rows, 99, packed=True)
    assert batch.input_ids.tolist() == [[2, 5, 7, 8, 1, 3, 9, 1]]
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 1, 0, 1, 1]]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert batch.rollout_logprobs.tolist() == [[0.0, -0.5, -0.5, -0.5, 0.0, -0.25, -0.25]]
    for mine, (begin, end) in zip(rows, ((0, 4), (5, 7)), strict=True):
        assert torch.equal(batch.noise[0, begin:end], mine.noise)
        assert torch.equal(batch.advantages[0, begin:end], mine.advantages)


@pytest.mark.parametrize("packed", [False, True])
def test_what_scoring_adds_comes_back_to_its_row(packed: bool) -> None:
    rollouts = [rollout((2, 5), (7, 8, 1), 1.0), rollout((3,), (9, 1), 0.0)]
    rows = make_rows(rollouts, 2, GroupRelative(), 0, drop_equal_groups=False)
    batch = collate(rows, 0, packed=packed)
    marks = batch.targets.float()
    scored = replace(batch, old_logprobs=-marks, old_statistics={"pair": torch.stack([marks, marks / 2], -1)})
    found = scored_rows(scored, rows)
    for before, after in zip(rows, found, strict=True):
        targets = before.token_ids[1:].float()
        assert after.old_logprobs is not None
        assert torch.equal(after.old_logprobs, -targets)
        assert torch.equal(after.old_statistics["pair"], torch.stack([targets, targets / 2], -1))
        assert after.ref_logprobs is None
        assert after.old_logprobs.untyped_storage().nbytes() == 4 * len(targets)
    again = collate(found, 0, packed=packed)
    assert again.old_logprobs is not None
    assert torch.equal(again.old_logprobs[again.loss_mask], -marks[again.loss_mask])
    assert again.old_statistics["pair"].shape == (*again.loss_mask.shape, 2)


def test_a_micro_batch_without_rows_carries_no_weight() -> None:
    batch = collate([], 7, packed=True)
    assert batch.input_ids.tolist() == [[7, 7]]
    assert not batch.loss_mask.any()


def test_what_carries_no_weight() -> None:
    rows = [rollout((2,), (7, 1), reward) for reward in (1.0, 0.0, None)]
    rows.append(rollout((2,), (7, 1), 1.0, logprob=-math.inf))
    rows += [rollout((2,), (7, 1), 1.0)] * 4
    kept = make_rows(rows, 4, GroupRelative(), 0, drop_equal_groups=False)
    # No verdict and a non-finite log-probability drop the response; its group goes on without it.
    assert [bool(row.loss_mask.any()) for row in kept] == [True, True, False, False, True, True, True, True]
    assert all(row.rollout_logprobs.isfinite().all() for row in kept)
    advantage = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert [float(row.advantages[-1]) for row in kept[:2]] == pytest.approx([advantage, -advantage])
    dropped = make_rows(rows, 4, GroupRelative(), 0, drop_equal_groups=True)
    assert [bool(row.loss_mask.any()) for row in dropped] == [True, True] + [False] * 6


def test_cut_responses_can_be_left_out_and_still_count_in_their_group() -> None:
    drawn = [rollout((2,), (7, 1), 1.0), rollout((2,), (8, 8, 8), 0.0), rollout((2,), (9, 1), 0.0)]
    drawn[1] = replace(drawn[1], episode=replace(drawn[1].episode, finish_reason="length"))
    kept = make_rows(drawn, 3, GroupRelative(normalize=False), 0, drop_equal_groups=False)
    masked = make_rows(drawn, 3, GroupRelative(normalize=False), 0, drop_equal_groups=False, mask_truncated=True)
    assert [int(row.loss_mask.sum()) for row in kept] == [2, 3, 2]
    assert [int(row.loss_mask.sum()) for row in masked] == [2, 0, 2]
    # The mean is that of all three.
    for before, after in zip(kept[::2], masked[::2], strict=True):
        assert torch.equal(before.advantages, after.advantages)
    assert float(masked[0].advantages[-1]) == pytest.approx(2 / 3)
    assert masked[1].advantages.abs().max() == masked[1].rollout_logprobs.abs().max() == 0


def test_records_hold_an_error_instead_of_a_reward(tmp_path: Path) -> None:
    write_records(tmp_path / "r" / "v.jsonl.gz", [rollout_record(rollout((2,), (7, 1), None), 0.0)])
    with gzip.open(tmp_path / "r" / "v.jsonl.gz", "rt") as file:
        (record,) = map(json.loads, file)
    assert (record["reward"], record["correct"], record["error"]) == (None, None, "Boom: x")
    assert record["token_ids"] == [7, 1]
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["v.jsonl.gz"]


class Stopwatch:
    """Time that passes only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowEngine(TransformersEngine):
    """Draws two tokens a response in four seconds."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch = watch

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        self.watch.now += 4.0
        for place in range(len(requests)):
            yield place, Generation((5, 6), (-0.5, -0.5), "stop", 0)


def test_grading_is_no_part_of_the_samplings_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch()
    monkeypatch.setattr("rlvr_lightning.rollout.drawing.time", watch)

    def verify(response: str, problem: Problem) -> Verdict:
        watch.now += 3.0
        return Verdict(1.0, True, None)

    source, engine = ModelSource(), SlowEngine(watch)
    sampling = SamplingSpec(1.0, 8, ())
    collector = Collector(source, engine, verify, GroupRelative(), sampling, 4, 0, lambda phase: None)
    prompts = PromptSource([problem("1+1="), problem("1+2=")], TOKENIZER, 0, 99, "skip")
    cut = StepCut(2, 2, 0, 1)
    source_of_groups = OnTheSpot(collector, prompts, 0, cut, 0)
    drawn = collector.collect(source_of_groups, cut, 1, drop_equal_groups=False, mask_truncated=False)
    metrics = drawn.report.metrics(torch.device("cpu"))
    assert metrics["perf/sampling_tokens_per_s"] == 8 * 2 / 4.0
    # The engine's four responses to a problem are equal, and judged once.
    assert metrics["perf/verifying_s"] == 2 * 3.0
