"""A rollout phase of the real engine: what is reported is what was drawn, and every response has its own randomness."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.methods.shaping.overlong import OverlongPenalty
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.collector import Collected, Collector, RolloutReport
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.rollout.gathering import exchange, from_all_ranks, is_first_rank
from rlvr_lightning.rollout.pipeline import OnTheSpot
from rlvr_lightning.rollout.prompts import PromptSource, derived_seed
from rlvr_lightning.rollout.refill import StepCut
from rlvr_lightning.tasks.arithmetic import Arithmetic
from rlvr_lightning.types import VERDICT_KINDS, Problem, Rollout, SamplingSpec, Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier
from rlvr_lightning.verifiers.grading import Grading

SOURCE, LONGEST, SEED, TOLERANT = ModelSource(), 24, 5, Grading(max_error_share=1.0)


class Moody:
    """Judges like the exact verifier, with a quarter for the wrong, but fails on answers that end in 3."""

    part_names = ("half", "length")

    def __call__(self, response: str, problem: Problem) -> Verdict:
        if response.endswith("3"):
            raise RuntimeError("no mood for three")
        verdict = ExactVerifier()(response, problem)
        parts = {"half": verdict.reward / 2, "length": float(len(response))}
        return Verdict(verdict.reward if verdict.correct else 0.25, verdict.correct, verdict.extracted, None, parts)


@pytest.fixture(scope="module")
def phases() -> list[str]:
    return []


@pytest.fixture(scope="module")
def drawn(phases: list[str]) -> Collected:
    engine = TransformersEngine()
    engine.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    engine.sync(Policy(SOURCE).full_weights(), 3)
    sampling = SamplingSpec(1.0, LONGEST, SOURCE.stop_token_ids())
    shaping = OverlongPenalty(buffer=5, max_length=LONGEST)
    told = phases.append
    began = time.perf_counter()
    collector = Collector(SOURCE, engine, Moody(), GroupRelative(), sampling, 4, SEED, told, shaping, TOLERANT)
    prompts = PromptSource(Arithmetic(num_train=50).train(), SOURCE.tokenizer, SEED, 99, "skip")
    cut = StepCut(8, 4)
    source = OnTheSpot(collector, prompts, 8, cut, 3)
    collected = collector.collect(source, cut, 1, drop_equal_groups=True, mask_truncated=True)
    phases.append(str(time.perf_counter() - began))
    return collected


def rollouts(drawn: Collected) -> list[Rollout]:
    return list(chain.from_iterable(drawn.rollouts))


def test_the_report_counts_what_was_drawn(drawn: Collected, phases: list[str]) -> None:
    every = rollouts(drawn)
    judged = [one for one in every if one.verdict is not None]
    cut = [one for one in every if one.episode.finish_reason == "length"]
    rewards = [one.verdict.reward for one in judged if one.verdict is not None]
    groups = [every[row : row + 4] for row in range(0, len(every), 4)]
    equal = [len({one.verdict.reward for one in group if one.verdict is not None}) <= 1 for group in groups]
    assert len(every) == 32
    assert 0 < len(cut) < 32
    assert 0 < len(judged) < 32
    assert 0 < sum(equal) < 8
    report = drawn.report.metrics(torch.device("cpu"))
    lengths = [one.episode.num_written for one in every]
    shaped = [
        reward - min(max(one.episode.num_written - LONGEST + 5, 0), 5) / 5
        for one, reward in zip(judged, rewards, strict=True)
    ]
    # Of a part of the time that all took.
    seconds = float(phases.pop())
    assert report.pop("perf/sampling_tokens_per_s") > sum(lengths) / seconds
    assert 0 < report.pop("perf/verifying_s") < seconds
    assert report == pytest.approx(
        {
            "reward/mean": sum(rewards) / len(rewards),
            "reward/shaped": sum(shaped) / len(shaped),
            "rollout/accuracy": sum(one.verdict.correct for one in judged if one.verdict is not None) / len(judged),
            "rollout/responses": 32,
            "rollout/response_tokens": sum(lengths) / 32,
            "rollout/truncated": len(cut) / 32,
            "rollout/masked": len(cut),
            "rollout/lag": 0,
            "rollout/equal_groups": sum(equal) / 8,
            "rollout/dropped": 32 - len(judged),
            "rollout/generation_batches": 1,
            "rollout/refilled_groups": 0,
            "verifier/part/half": sum(one.verdict.correct for one in judged if one.verdict is not None)
            / 2
            / len(judged),
            "verifier/part/length": sum(len(one.text) for one in judged) / len(judged),
            **{f"verifier/{kind}": sum(one.kind == kind for one in every) / 32 for kind in VERDICT_KINDS},
        },
        rel=1e-6,
    )
    assert phases[-2:] == ["sampling", "verifying"]


def test_speed_is_in_tokens_of_all_ranks_a_second() -> None:
    report = RolloutReport()
    names = ("responses", "graded", "reward", "correct", "truncated", "masked", "equal_groups", "groups", "dropped")
    for name in (*names, "refilled", "batches", "lag", *(f"kind/{kind}" for kind in VERDICT_KINDS)):
        report.add(name, 1)
    for name, value in (("ranks", 2), ("tokens", 60), ("tokens", 40), ("sampling_s", 0.5), ("verifying_s", 0.25)):
        report.add(name, value)
    found = report.metrics(torch.device("cpu"))
    # 100 tokens in half a second of two ranks' time together, a quarter each.
    assert (found["perf/sampling_tokens_per_s"], found["perf/verifying_s"]) == (400, 0.125)
    assert found["rollout/response_tokens"] == 100


def test_a_rollout_is_the_prompts_the_engines_and_the_verifiers(drawn: Collected) -> None:
    for place, one in enumerate(rollouts(drawn)):
        assert (one.prompt.index, one.sample, one.policy_version) == (8 + place // 4, place % 4, 3)
        assert one.text == SOURCE.tokenizer.decode(list(one.episode.token_ids), skip_special_tokens=True)
        assert "<" not in one.text
        assert (one.verdict is None) == one.text.endswith("3") == (one.error is not None)
        if one.episode.finish_reason == "length":
            assert one.episode.num_written == LONGEST
    assert any(one.verdict.correct for one in rollouts(drawn) if one.verdict is not None)


def test_each_token_of_each_response_has_a_random_number_of_its_own(drawn: Collected) -> None:
    noises = []
    for row, one in zip(chain.from_iterable(drawn.steps), rollouts(drawn), strict=True):
        start, length = len(one.prompt.token_ids) - 1, one.episode.num_written
        generator = torch.Generator().manual_seed(derived_seed(SEED, "noise", one.prompt.index, one.sample))
        expected = torch.rand(length, generator=generator)
        assert torch.equal(row.noise[start : start + length], expected)
        noises += expected.tolist()
    assert len(set(noises)) > 0.999 * len(noises)


def _rank(rank: int, file: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    gathered = from_all_ranks([f"{rank}{item}" for item in "abc"[: rank + 1]])
    # To itself nothing travels.
    got = exchange([[f"{rank} to {other}"] * other for other in range(3)], torch.device("cpu"))
    torch.save((gathered, got, is_first_rank()), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_objects_travel_between_ranks(tmp_path: Path) -> None:
    assert from_all_ranks([1, 2]) == [1, 2]
    assert exchange([[1]], torch.device("cpu")) == []
    assert is_first_rank()
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert [one[0] for one in found] == [["0a", "1a", "1b", "2a", "2b", "2c"]] * 3
    assert [one[1] for one in found] == [[], ["0 to 1", "2 to 1"], ["0 to 2", "0 to 2", "1 to 2", "1 to 2"]]
    assert [one[2] for one in found] == [True, False, False]
