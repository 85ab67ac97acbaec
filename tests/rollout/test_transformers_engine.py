"""The engine against the policy it samples from: real model, real `generate`."""

from __future__ import annotations

import pytest
import torch

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.seeded_sampler import SeededSampler
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.types import GenerationRequest, SamplingSpec

SOURCE = ModelSource()
PROMPTS = [tuple(SOURCE.tokenizer(f"<user>{text}<assistant>")["input_ids"]) for text in ("1+2+3+4=", "19+17+1-4=")]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    engine = TransformersEngine(batch_size=8)
    engine.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    return engine


def spec(temperature: float = 1.0, length: int = 48) -> SamplingSpec:
    return SamplingSpec(temperature, length, SOURCE.stop_token_ids())


@torch.no_grad()
def scored(policy: Policy, prompt: tuple[int, ...], response: tuple[int, ...], temperature: float) -> torch.Tensor:
    logits = policy.causal_lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_policys_after_a_sync(engine: TransformersEngine, temperature: float) -> None:
    policy = Policy(SOURCE)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1 + 0.05 * torch.rand(1, generator=torch.Generator().manual_seed(parameter.numel())))
    engine.sync(policy.full_weights(), 7)
    assert engine.policy_version == 7
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 4)]
    for request, drawn in zip(requests, engine.generate(requests, spec(temperature)), strict=True):
        expected = scored(policy, request.token_ids, drawn.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(drawn.logprobs), expected, rtol=0, atol=2e-5)


def test_a_response_depends_on_its_own_seed_alone(engine: TransformersEngine) -> None:
    alone = engine.generate([GenerationRequest(PROMPTS[0], 3)], spec())[0]
    company = [GenerationRequest(PROMPTS[1], 11), GenerationRequest(PROMPTS[0], 3), GenerationRequest(PROMPTS[0], 4)]
    drawn = engine.generate(company, spec())
    assert drawn[1].token_ids == alone.token_ids
    assert len({generation.token_ids for generation in engine.generate(company * 1, spec())}) == 3
    assert [g.token_ids for g in engine.generate(company, spec())] == [g.token_ids for g in drawn]


def test_responses_end_with_their_stop_token_or_at_the_limit(engine: TransformersEngine) -> None:
    (whole,) = engine.generate([GenerationRequest(PROMPTS[0], 0)], spec())
    assert whole.finish_reason == "stop"
    assert whole.token_ids[-1] == SOURCE.tokenizer.eos_token_id
    assert SOURCE.tokenizer.eos_token_id not in whole.token_ids[:-1]
    (cut,) = engine.generate([GenerationRequest(PROMPTS[0], 0)], spec(length=5))
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:5], "length")


def test_samples_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05])
    rows = 20_000
    sampler = SeededSampler(range(rows), SamplingSpec(2.0, 1, ()), torch.device("cpu"))
    scores = (probabilities.log() * 2.0).expand(rows, 5)  # at temperature 2 these are the probabilities
    chosen = sampler(torch.zeros(rows, 1, dtype=torch.long), scores).argmax(-1)
    counts = torch.bincount(chosen, minlength=5) / rows
    assert counts[2] == 0
    # Five standard deviations of a share among 20,000.
    assert (counts - probabilities).abs().max() < 5 * (0.25 / rows) ** 0.5
    torch.testing.assert_close(sampler.logprobs[:, 0], probabilities.log()[chosen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("top_p", "nucleus"), [(0.49, [0]), (0.51, [0, 3]), (0.74, [0, 3]), (0.76, [0, 1, 3]), (1.0, [0, 1, 3, 4])]
)
def test_a_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, nucleus: list[int]) -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05], dtype=torch.float64)
    rows = 20_000
    sampler = SeededSampler(range(rows), SamplingSpec(0.5, 1, (), top_p), torch.device("cpu"))
    scores = (probabilities.log() * 0.5).expand(rows, 5)
    chosen = sampler(torch.zeros(rows, 1, dtype=torch.long), scores).argmax(-1)
    within = torch.zeros(5, dtype=torch.float64)
    within[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    counts = torch.bincount(chosen, minlength=5) / rows
    assert sorted(set(chosen.tolist())) == nucleus
    assert (counts - within).abs().max() < 5 * (0.25 / rows) ** 0.5
    torch.testing.assert_close(sampler.logprobs[:, 0].double(), within.log()[chosen], rtol=1e-5, atol=1e-5)


def test_temperature_zero_takes_the_most_probable_token(engine: TransformersEngine) -> None:
    policy = Policy(SOURCE)
    engine.sync(policy.full_weights(), 1)
    first, second = engine.generate([GenerationRequest(PROMPTS[0], seed) for seed in (1, 2)], spec(0.0))
    assert first == second
    assert set(first.logprobs) == {0.0}
    ids = torch.tensor([PROMPTS[0] + first.token_ids])
    with torch.no_grad():
        best = policy.causal_lm(ids).logits[0, len(PROMPTS[0]) - 1 : -1].argmax(-1)
    assert tuple(best.tolist()) == first.token_ids


def test_responses_are_handed_over_batch_by_batch(engine: TransformersEngine) -> None:
    requests = [GenerationRequest(PROMPTS[seed % 2], seed) for seed in range(20)]
    places = [place for place, _ in engine.stream(requests, spec(length=4))]
    # Shorter prompts first, eight at a time.
    assert places == [*range(0, 20, 2), *range(1, 20, 2)]
    assert dict(engine.stream(requests, spec(length=4)))[7] == engine.generate(requests, spec(length=4))[7]


def test_a_sync_that_does_not_fit_is_refused(engine: TransformersEngine) -> None:
    weights = list(Policy(SOURCE).full_weights())
    with pytest.raises(RolloutError, match="has no weight named nobody"):
        engine.sync([("nobody", torch.zeros(1))], 1)
    with pytest.raises(RolloutError, match="weights were not synced: model.norm.weight"):
        engine.sync([pair for pair in weights if pair[0] != "model.norm.weight"], 1)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        TransformersEngine(0)


def test_as_many_responses_are_drawn_at_a_time_as_the_batch_size_says(engine: TransformersEngine) -> None:
    pairs = TransformersEngine(batch_size=2)
    pairs.start(SOURCE, torch.device("cpu"), 128, torch.float32)
    assert pairs._model is not None
    rows: list[int] = []
    hook = pairs._model.register_forward_pre_hook(
        lambda module, positional, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    requests = [GenerationRequest(PROMPTS[seed % 2], seed) for seed in range(5)]
    drawn = pairs.generate(requests, spec(length=3))
    hook.remove()
    # Three batches of three tokens each, the last of one response; before each, its prompts once.
    assert rows == [1, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]
    pairs.sync(Policy(SOURCE).full_weights(), 1)
    engine.sync(Policy(SOURCE).full_weights(), 1)
    whole = engine.generate(requests, spec(length=3))
    assert [one.token_ids for one in whole] == [one.token_ids for one in drawn]
