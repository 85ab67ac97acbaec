"""Real vLLM in this process, on whatever device there is."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import agreeing
import pytest
import torch
from training import SMALL

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.vllm.in_process import VLLMEngine
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed
from rlvr_lightning.types import GenerationRequest, SamplingSpec

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_installed(), reason="vllm is not installed: nox -s vllm installs it"),
]
SOURCE = ModelSource()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPTS = [tuple(SOURCE.tokenizer(f"<user>{text}<assistant>")["input_ids"]) for text in ("1+2+3+4=", "19+17+1-4=")]


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(max_num_seqs=16)
    engine.start(SOURCE, DEVICE, 96, torch.float32)
    yield engine
    engine.close()
    engine.close()


def widest_gap(engine: VLLMEngine, policy: Policy, temperature: float = 1.0) -> float:
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 4)]
    return agreeing.widest_gap(engine, policy, requests, SamplingSpec(temperature, 40, SOURCE.stop_token_ids()))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_agree_with_the_trainers_weight_by_weight(engine: VLLMEngine, temperature: float) -> None:
    policy = Policy(SOURCE)
    engine.sync(policy.full_weights(), 0)
    assert widest_gap(engine, policy, temperature) < 1e-4
    for name, parameter in policy.causal_lm.named_parameters():
        if "layers." in name and "layers.2." not in name:
            continue
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.2 * parameter.abs().mean() * noise)
        stale = widest_gap(engine, policy, temperature)
        engine.sync(policy.full_weights(), 1)
        assert engine.policy_version == 1
        # A weight that is passed over (as a tied output layer once was) leaves the gap as it was.
        assert widest_gap(engine, policy, temperature) < 1e-4 < stale, name


def test_seeds_make_responses_repeatable(engine: VLLMEngine) -> None:
    engine.sync(Policy(SOURCE).full_weights(), 2)
    requests = [GenerationRequest(PROMPTS[0], seed) for seed in (5, 5, 6)]
    sampling = SamplingSpec(1.0, 40, SOURCE.stop_token_ids())
    first, second = (engine.generate(requests, sampling) for _ in range(2))
    assert [g.token_ids for g in first] == [g.token_ids for g in second]
    assert first[0].token_ids == first[1].token_ids != first[2].token_ids


def test_responses_are_handed_over_as_they_end(engine: VLLMEngine) -> None:
    engine.sync(Policy(SOURCE).full_weights(), 4)
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 12)]
    sampling = SamplingSpec(1.0, 40, SOURCE.stop_token_ids())
    ended = list(engine.stream(requests, sampling))
    lengths = [len(generation.token_ids) for _, generation in ended[:16]]
    # Sixteen at a time: of those drawn together the shorter ones come first.
    assert lengths[0] == min(lengths) < max(lengths)
    assert [dict(ended)[place] for place in range(24)] == engine.generate(requests, sampling)


def test_who_stops_listening_leaves_nothing_running(engine: VLLMEngine) -> None:
    engine.sync(Policy(SOURCE).full_weights(), 5)
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 12)]
    sampling = SamplingSpec(1.0, 40, SOURCE.stop_token_ids())
    whole = engine.generate(requests, sampling)
    stream = engine.stream(requests, sampling)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    # New weights are refused while anything runs.
    engine.sync(Policy(SOURCE).full_weights(), 6)
    assert engine.generate(requests, sampling) == [replace(one, policy_version=6) for one in whole]


def test_greedy_and_nucleus_responses(engine: VLLMEngine) -> None:
    engine.sync(Policy(SOURCE).full_weights(), 7)
    requests = [GenerationRequest(PROMPTS[0], seed) for seed in range(6)]
    greedy, narrow, wide = (
        {
            one.token_ids
            for one in engine.generate(requests, SamplingSpec(temperature, 12, SOURCE.stop_token_ids(), top_p))
        }
        for temperature, top_p in ((0.0, 1.0), (1.0, 1e-6), (1.0, 1.0))
    )
    # A nucleus of almost nothing is the most probable token.
    assert greedy == narrow
    assert len(greedy) == 1 < len(wide)


def test_more_prompt_tokens_than_fit_one_pass_are_never_cut(engine: VLLMEngine) -> None:
    engine.sync(Policy(SOURCE).full_weights(), 3)
    # 100 prompts of 82 tokens: twice what is computed at a time.
    long = tuple(SOURCE.tokenizer("<user>" + "1+2+" * 20 + "<assistant>")["input_ids"])
    assert len(long) == 82
    requests = [GenerationRequest((*long[:-1], 4 + seed % 10, long[-1]), seed) for seed in range(100)]
    drawn = engine.generate(requests, SamplingSpec(1.0, 8, SOURCE.stop_token_ids()))
    alone = engine.generate(requests[70:71], SamplingSpec(1.0, 8, SOURCE.stop_token_ids()))
    assert drawn[70].token_ids == alone[0].token_ids


def test_a_run_with_vllm_learns_from_what_vllm_drew(tmp_path: Path) -> None:
    # Judged in a process of its own, while vLLM goes on drawing.
    judged = ("engine=vllm", "grading.workers=1")
    overrides = ["conf=archer", "rollout.prompts_per_step=4", *judged, f"output_dir={tmp_path}"]
    small = [item for item in SMALL if not item.startswith("engine=")]
    command = [sys.executable, "-m", "rlvr_lightning", "fit", *small, *overrides, "trainer.max_epochs=3"]
    subprocess.run(command, check=True, timeout=400)
    with (tmp_path / "logs" / "metrics.csv").open() as lines:
        gaps = [
            float(row["rollout/logprob_gap_max"]) for row in csv.DictReader(lines) if row["rollout/logprob_gap_max"]
        ]
    assert len(gaps) == 3
    assert max(gaps) < 1e-4
