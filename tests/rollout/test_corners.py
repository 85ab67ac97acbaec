"""Corners of a rollout phase: a prompt exactly as long as it may be, special tokens, random numbers, empty places."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from rlvr_lightning import OPEFO, GroupRelative, Objective, SinglePart, TokenMean
from rlvr_lightning.errors import CheckpointError, ConfigError, DataError
from rlvr_lightning.models.source import ModelSource, bundled_model
from rlvr_lightning.rollout import prompts
from rlvr_lightning.rollout.batching import equal_groups
from rlvr_lightning.rollout.checks import check_fit, check_resumed, check_settings
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.rollout.prompts import PromptSource, derived_seed, tokenize
from rlvr_lightning.rollout.refill import Group, refill
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, SamplingSpec, Verdict

TOKENIZER = ModelSource().tokenizer


def problem(text: str) -> Problem:
    return Problem(text, ({"role": "user", "content": text},), "1")


def ids_of(text: str, tokenizer: Any) -> list[int]:
    (ids,) = tokenize([problem(text)], tokenizer)
    return list(ids)


def test_a_prompt_exactly_as_long_as_it_may_be_is_kept() -> None:
    problems = [problem("1+1="), problem("10+1=")]
    lengths = list(map(len, tokenize(problems, TOKENIZER)))
    assert lengths[1] == lengths[0] + 1
    kept = PromptSource(problems, TOKENIZER, 0, lengths[1], "error")
    assert (len(kept), kept.num_skipped, kept.longest) == (2, 0, lengths[1])
    kept = PromptSource(problems, TOKENIZER, 0, lengths[0], "skip")
    assert (len(kept), kept.num_skipped, kept.longest) == (1, 1, lengths[0])
    with pytest.raises(DataError, match=r"problem 10\+1="):
        PromptSource(problems, TOKENIZER, 0, lengths[0], "error")


def test_the_order_is_the_same_wherever_reading_begins() -> None:
    problems = [problem(f"{number}+1=") for number in range(5)]
    whole = PromptSource(problems, TOKENIZER, 0, 99, "error").take(0, 15)
    for start in (0, 4, 5, 7, 10):
        assert PromptSource(problems, TOKENIZER, 0, 99, "error").take(start, 5) == whole[start : start + 5]
    assert [prompt.problem for prompt in whole[:5]] != [prompt.problem for prompt in whole[5:10]]


def test_many_prompts_are_tokenised_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number}+{7 * number}=" for number in range(25)]
    each = [ids_of(text, TOKENIZER) for text in texts]
    assert len({tuple(ids) for ids in each}) == 25
    monkeypatch.setattr(prompts, "AT_ONCE", 10)
    assert list(map(list, tokenize([problem(text) for text in texts], TOKENIZER))) == each


def test_a_group_teaches_where_rewards_that_count_differ() -> None:
    rewards = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    counts = torch.tensor([[True, True, False], [True, True, True], [False] * 3, [True, False, True]])
    assert equal_groups(rewards, counts).tolist() == [True, False, True, True]


def test_a_tokenizer_that_begins_each_text_with_a_token_does_so_once(tmp_path: Path) -> None:
    shutil.copytree(bundled_model(), tmp_path / "model")
    tokenizer = ModelSource(str(tmp_path / "model")).tokenizer
    begin = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id)
    processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = processor
    first = tokenizer.eos_token_id
    assert tokenizer("7+5=")["input_ids"][0] == first
    # The template writes its special tokens itself, here none before the user's.
    plain = ids_of("7+5=", TOKENIZER)
    assert ids_of("7+5=", tokenizer) == plain
    assert first not in plain
    # Where it writes the first token too, that is the only one.
    tokenizer.chat_template = begin + str(tokenizer.chat_template)
    assert ids_of("7+5=", tokenizer) == [first, *plain]
    # Without a template the tokenizer's own stands there.
    tokenizer.chat_template = None
    assert tokenizer.convert_ids_to_tokens(ids_of("7+5=", tokenizer)) == [begin, "7", "+", "5", "="]


def test_a_seed_is_made_of_all_its_parts_and_stays_the_same() -> None:
    digest = hashlib.sha256(b"0/train/1/2").hexdigest()
    assert derived_seed(0, "train", 1, 2) == int(digest[:8], 16) // 2
    assert derived_seed(0, "train", 12) != derived_seed(0, "train", 1, 2)


def group(index: int, *rewards: float) -> Group:
    prompt = Prompt(Problem(str(index), (), "1"), (2,), index)
    episode = Episode.of(Generation((7,), (-0.5,), "stop", 0))
    return [Rollout(prompt, i, episode, "", Verdict(reward, reward == 1)) for i, reward in enumerate(rewards)]


def test_groups_that_teach_nothing_lie_between_those_that_do() -> None:
    first = [group(0, 1, 1), group(1, 0, 0), group(2, 0, 1), group(3, 1, 1), group(4, 1, 0), group(5, 1, 1)]
    kept, batches = refill([first].__getitem__, 6, 1)
    assert batches == 1
    # Two that teach, four that do not: no half of the phase is without one.
    assert [one[0].prompt.index for one in kept] == [0, 1, 2, 3, 5, 4]
    second = [group(6, 0, 0), group(7, 1, 1), group(8, 1, 0), group(9, 0, 0), group(10, 1, 1), group(11, 1, 1)]
    kept, batches = refill([first, second].__getitem__, 6, 2)
    assert batches == 2
    assert [one[0].prompt.index for one in kept] == [0, 2, 1, 4, 3, 8]


@pytest.mark.parametrize(
    ("buffer_version", "steps_done", "refused"),
    [(8, 0, False), (8, 1, True), (8, 3, True), (8, 4, False), (0, 1, True), (-1, 2, False)],
)
def test_what_a_phase_was_drawn_with_is_kept_while_it_is_under_way(
    buffer_version: int, steps_done: int, refused: bool
) -> None:
    drawn = {"group_size": 8, "prompts_per_epoch": 8, "prompts_per_step": 4, "passes": 2, "temperature": 1.0}
    drawn |= {"steps_per_epoch": 4}
    now: Any = SimpleNamespace(**drawn | {"temperature": 0.5})
    state = {
        "order": "one",
        "settings": drawn,
        "buffer_version": buffer_version,
        "policy_version": buffer_version + steps_done,
    }
    if refused:
        with pytest.raises(CheckpointError, match=f"temperature cannot be .*{steps_done} of 4 steps.*drawn with 1.0"):
            check_resumed(now, state, "one")
    else:
        check_resumed(now, state, "one")
    with pytest.raises(CheckpointError, match="their order"):
        check_resumed(now, state, "another")
    with pytest.raises(CheckpointError, match="they were 4, .* would be 2"):
        check_resumed(SimpleNamespace(**drawn | {"steps_per_epoch": 2}), state, "one")  # type: ignore[arg-type]


RIGHT: dict[str, Any] = {
    "group_size": 2,
    "prompts_per_epoch": 1,
    "prompts_per_step": 1,
    "generation_batches": 1,
    "drop_equal_groups": False,
    "passes": 1,
    "sampling": SamplingSpec(1.0, 1, (0,)),
    "top_p": 1.0,
    "max_prompt_tokens": 1,
    "overlong_prompts": "error",
    "packing": False,
    "truncated": "keep",
    "eval_samples": 1,
    "engine": TransformersEngine(),
    "max_lag": 0,
    "exact_seeds": "auto",
    "canary_tolerance": "auto",
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"group_size": 1}, "group_size must be at least 2 for this advantage; got 1"),
    ({"prompts_per_epoch": 0}, "prompts_per_epoch must be at least 1; got 0"),
    ({"prompts_per_step": 0}, "prompts_per_step must divide prompts_per_epoch=1; got 0"),
    ({"prompts_per_step": 2}, "prompts_per_step must divide prompts_per_epoch=1; got 2"),
    ({"generation_batches": 0}, "generation_batches must be at least 1; got 0"),
    ({"generation_batches": 2}, "generation_batches above 1 needs drop_equal_groups=true.*; got 2"),
    ({"passes": 0}, "passes must be at least 1; got 0"),
    ({"sampling": SamplingSpec(0.0, 1, (0,))}, "temperature must be above 0; got 0"),
    ({"sampling": SamplingSpec(-1.0, 1, (0,))}, "temperature must be above 0; got -1"),
    ({"top_p": 0.99}, "top_p must be 1: .*; got 0.99"),
    ({"top_p": 1.01}, "top_p must be 1: .*; got 1.01"),
    ({"sampling": SamplingSpec(1.0, 0, (0,))}, "max_new_tokens must be at least 1; got 0"),
    ({"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1; got 0"),
    ({"overlong_prompts": "cut"}, "overlong_prompts: skip or error; got cut"),
    ({"packing": "yes"}, "packing: auto, true or false; got yes"),
    ({"truncated": "drop"}, "truncated: keep or mask; got drop"),
    ({"eval_samples": 0}, "eval_samples must be at least 1; got 0"),
    ({"max_lag": -1}, "max_lag must be at least 0; got -1"),
    ({"max_lag": 1}, "max_lag above 0 needs an engine that draws in processes of its own: engine=vllm_server; got 1"),
    ({"exact_seeds": "yes"}, "exact_seeds: auto, true or false; got yes"),
    ({"canary_tolerance": 0.0}, r"canary_tolerance must be auto or above 0 \[nats\]; got 0.0"),
    ({"canary_tolerance": True}, r"canary_tolerance must be auto or above 0 \[nats\]; got True"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_settings_end_where_they_should(changed: dict[str, Any], message: str) -> None:
    check_settings(SimpleNamespace(**RIGHT), GroupRelative())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"^rollout.{message}"):
        check_settings(SimpleNamespace(**RIGHT | changed), GroupRelative())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"generation_batches": 2, "drop_equal_groups": True},
        {"overlong_prompts": "skip"},
        {"packing": "auto"},
        {"packing": True},
        {"truncated": "mask"},
        {"prompts_per_epoch": 6, "prompts_per_step": 3},
    ],
)
def test_settings_that_are_right(changed: dict[str, Any]) -> None:
    check_settings(SimpleNamespace(**RIGHT | changed), GroupRelative())  # type: ignore[arg-type]


def joined(**changed: Any) -> Any:
    """A data module's settings beside a trainer's and a module's."""
    objective = Objective(SinglePart(), OPEFO(), {}, TokenMean())
    module = SimpleNamespace(eval_samples=4, temperature=1.0, objective=objective)
    right = {
        "prompts_per_step": 8,
        "ranks": (0, 4),
        "eval_samples": 4,
        "temperature": 1.0,
        "steps_per_epoch": 1,
        "max_lag": 0,
    }
    trainer = SimpleNamespace(reload_dataloaders_every_n_epochs=1)
    return SimpleNamespace(**right | {"rlvr_module": module, "trainer": trainer} | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval_samples": 3}, "eval_samples is 3 in RolloutDataModule and 4 in RLVRModule"),
        ({"eval_samples": 5}, "eval_samples is 5 in RolloutDataModule and 4 in RLVRModule"),
        ({"temperature": 0.9}, "sampling at temperature 0.9 and scoring at 1.0"),
        ({"temperature": 1.1}, "sampling at temperature 1.1 and scoring at 1.0"),
        ({"max_lag": 1}, "OPEFO makes sense only on-policy: set rollout.max_lag=0"),
        ({"steps_per_epoch": 2}, "OPEFO makes sense only on-policy, but 2 optimizer steps"),
        ({"ranks": (0, 3)}, "rollout.prompts_per_step=8 must be a multiple of the 3 ranks"),
        ({"trainer": SimpleNamespace(reload_dataloaders_every_n_epochs=0)}, "reload_dataloaders_every_n_epochs=1"),
        ({"trainer": SimpleNamespace(reload_dataloaders_every_n_epochs=2)}, "reload_dataloaders_every_n_epochs=1"),
    ],
)
def test_trainer_module_and_data_must_agree(changed: dict[str, Any], message: str) -> None:
    check_fit(joined())
    with pytest.raises(ConfigError, match=message):
        check_fit(joined(**changed))
