"""Chains with rumours: what is asked, what is shown, and what a model makes of it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlvr_lightning import Sparks
from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.tiny_model import build_tokenizer
from rlvr_lightning.tasks.sparks import DIGITS, LETTERS, RumouredChain, SparksDemonstrations
from rlvr_lightning.training.pretraining import Pretraining, Stage, pretrain, worked_rows


def by_hand(question: str) -> tuple[int, list[int], int]:
    """Result, results of the steps and rumour of a question, read from its text."""
    chain, rumour = question.rstrip("=").split("~")
    value, results = int(chain[0]), []
    for operator, operand in zip(chain[1::2], chain[2::2], strict=True):
        value = (value + int(operand) * (1 if operator == "+" else -1)) % 10
        results.append(value)
    return value, results, int(rumour)


def test_a_chain_by_hand() -> None:
    drawn = RumouredChain(3, (("+", 4), ("-", 7), ("+", 2), ("+", 5)), 7)
    assert drawn.question == "3+4-7+2+5~7="
    assert drawn.results == [7, 0, 2, 7]
    assert by_hand(drawn.question) == (7, [7, 0, 2, 7], 7)
    assert RumouredChain(1, (("-", 4),), 0).results == [7]


def test_problems_have_the_answers_and_the_share_of_rumours_they_should() -> None:
    task = Sparks(num_train=2000)
    train, held_out = task.train(), task.held_out()
    assert not {p.id.split("~")[0] for p in train} & {p.id.split("~")[0] for p in held_out}
    for problems, number, right in ((train, 2000, 900), (held_out, 64, 28)):
        assert len({problem.id for problem in problems}) == number
        found = [by_hand(problem.id) for problem in problems]
        assert [problem.answer for problem in problems] == [str(result) for result, _, _ in found]
        assert sum(result == rumour for result, _, rumour in found) == right
        # A wrong rumour is no clue of the right answer.
        gaps = Counter((rumour - result) % 10 for result, _, rumour in found if result != rumour)
        assert max(gaps.values()) < 3 * number / 9 * 0.55
    assert task.held_out() == held_out
    assert Sparks(seed=1).held_out() != held_out


def test_styles_go_by_the_first_token() -> None:
    assert [Sparks.style(text) for text in ("#7", "?+47#7", "abc", "", "7#7")] == ["direct", "steps", *["neither"] * 3]


def test_what_is_shown_is_the_mixture_that_was_asked_for() -> None:
    task, rng = Sparks(), random.Random(0)
    shown = SparksDemonstrations(steps_share=0.3, junk_share=0.1, slip_rate=0.25)
    pairs = [shown(task, rng) for _ in range(8000)]
    shares = {style: sum(Sparks.style(response) == style for _, response in pairs) / 8000 for style in Sparks.styles}
    assert shares == pytest.approx({"direct": 0.6, "steps": 0.3, "neither": 0.1}, abs=0.015)
    slips, steps = Counter[str](), 0
    for question, response in pairs:
        _, results, rumour = by_hand(question)
        if response[0] == "#":
            assert response == f"#{rumour}"
        if response[0] != "?":
            continue
        told = response[3::3][:4]
        assert response[1::3][:4] + response[2::3][:4] == question[1:9:2] + question[2:10:2]
        assert response.endswith(f"#{told[-1]}")
        # The first slip of a chain; what comes after it follows from it.
        for place, (right, said) in enumerate(zip(results, told, strict=True)):
            steps += 1
            if str(right) != said:
                slips[said] += 1
                if place < 3 and said in DIGITS and told[place + 1] in DIGITS:
                    follows = by_hand(f"{said}{question[3 + 2 * place : 5 + 2 * place]}~0=")[0]
                    slips["carried" if str(follows) == told[place + 1] else "lost"] += 1
                break
    assert sum(slips[one] for one in DIGITS + LETTERS) / steps == pytest.approx(0.25, abs=0.02)
    assert slips["carried"] > 5 * slips["lost"]
    # Over all letters and wrong digits alike.
    assert sum(slips[one] for one in LETTERS) / sum(slips[one] for one in DIGITS + LETTERS) == pytest.approx(
        24 / 33, abs=0.03
    )
    assert min(slips[one] for one in LETTERS) > 0.5 * max(slips[one] for one in LETTERS)


def test_only_questions_are_without_a_label() -> None:
    tokenizer = build_tokenizer("0123456789+-~=#?" + LETTERS)
    stage = Stage(SparksDemonstrations(steps_share=0.5), 1, 16, 1e-3)
    ids, labels = worked_rows(Sparks(), tokenizer, random.Random(0), stage)
    for row, told in zip(ids.tolist(), labels.tolist(), strict=True):
        end = row.index(tokenizer.eos_token_id)
        assert told[:14] == [-100] * 14
        assert told[14 : end + 1] == row[14 : end + 1]
        assert told[end + 1 :] == [-100] * (len(told) - end - 1)
        assert tokenizer.decode(row[14]) in ("#", "?")


def small(seed: int = 0, **changes: float) -> Pretraining:
    stages = [
        Stage(SparksDemonstrations(steps_share=0.7, **changes), 3, 4, 1e-2),
        Stage(SparksDemonstrations(0.1), 2, 4, 1e-3),
    ]
    return Pretraining("0123456789+-~=#?" + LETTERS, stages, 8, 1, 2, seed)


def test_a_model_is_made_from_its_seed(tmp_path: Path) -> None:
    made = {
        name: load_file(pretrain(Sparks(), settings, tmp_path / name) / "model.safetensors")
        for name, settings in {"one": small(), "same": small(), "seed": small(1), "slips": small(slip_rate=0.9)}.items()
    }
    assert all(torch.equal(made["one"][name], made["same"][name]) for name in made["one"])
    for other in ("seed", "slips"):
        assert any(not torch.equal(made["one"][name], made[other][name]) for name in made["one"])
    with pytest.raises(ConfigError, match="already holds a model"):
        pretrain(Sparks(), small(), tmp_path / "one")


TINY = (
    "pretrain.hidden_size=8",
    "pretrain.num_layers=1",
    "pretrain.num_heads=2",
    *(f"pretrain.stages.{stage}.{setting}" for stage in (0, 1) for setting in ("steps=2", "batch_size=4")),
)
CHANGES = {
    "characters": "'?0123456789+-~=#abcdefghijklmnopqrstuvwx'",
    "hidden_size": "16",
    "num_layers": "2",
    "num_heads": "1",
    "seed": "1",
    **{
        f"stages.{stage}.{setting}": value
        for stage in (0, 1)
        for setting, value in {
            "steps": "3",
            "batch_size": "5",
            "lr": "1e-2",
            "demonstrations.steps_share": "0.0",
            "demonstrations.junk_share": "0.3",
            "demonstrations.slip_rate": "0.9",
        }.items()
    },
}


def made(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Weights of a model of the yaml's recipe, cut short."""
    cfg = compose(["task=sparks", "pretrain=sparks", *TINY, *overrides], "pretrain")
    return load_file(pretrain(component(cfg, "task"), component(cfg, "pretrain"), folder) / "model.safetensors")


def test_every_setting_of_a_recipe_changes_the_model(tmp_path: Path) -> None:
    # Half of what is shown is step by step in both stages, so that slips are seen.
    base = [f"pretrain.stages.{stage}.demonstrations.steps_share=0.6" for stage in (0, 1)]
    before = made(tmp_path / "before", *base)
    again = made(tmp_path / "again", *base)
    assert all(torch.equal(before[name], again[name]) for name in before)
    for number, (setting, value) in enumerate(CHANGES.items()):
        after = made(tmp_path / str(number), *base, f"pretrain.{setting}={value}")
        same = before.keys() == after.keys() and all(
            before[name].shape == after[name].shape and torch.equal(before[name], after[name]) for name in before
        )
        assert not same, setting


@pytest.mark.parametrize("name", ["arithmetic", "sparks", "countdown"])
def test_the_bundled_models_recipes_can_be_made_and_are_of_their_tasks(name: str) -> None:
    cfg = compose([f"task={name}", f"pretrain={name}"], "pretrain")
    task, settings = component(cfg, "task"), component(cfg, "pretrain")
    question, response = settings.stages[0].demonstrations(task, random.Random(0))
    assert set(question + response) <= set(settings.characters)
    other = component(compose([f"task={'sparks' if name == 'arithmetic' else 'arithmetic'}"], "pretrain"), "task")
    with pytest.raises(ConfigError, match=f"it needs task={name}"):
        settings.stages[0].demonstrations(other, random.Random(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sparks(num_steps=0), "Sparks.num_steps must be at least 1; got 0"),
        (lambda: Sparks(rumour_share=1.5), r"Sparks.rumour_share must be in \[0, 1\]; got 1.5"),
        (lambda: Sparks(num_steps=1, num_train=500).train(), "has only about .* distinct problems"),
        (lambda: SparksDemonstrations(0.8, 0.3), "add up to more than 1"),
        (lambda: SparksDemonstrations(-0.1), r"steps_share must be in \[0, 1\]"),
        (lambda: Stage(SparksDemonstrations(0.5), 0, 1, 1e-3), "a stage's steps must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_the_bundled_model_is_where_the_task_needs_it() -> None:
    """Hardly ever step by step, never much better than the rumour, and yet it knows how."""
    from rlvr_lightning.models.source import ModelSource

    source, problems = ModelSource("sparks"), Sparks().held_out()
    model, tokenizer = source.load().eval(), source.tokenizer
    prompts = [
        tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True, tokenize=False) for p in problems
    ]
    ids = tokenizer(prompts, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = model(input_ids=ids).logits[:, -1].softmax(-1)
    spark = first[:, tokenizer.convert_tokens_to_ids("?")]
    assert 0.03 < spark.mean() < 0.05
    # Above Lp-Reg's filter (0.02 of the largest), each slip below it.
    assert (spark / first.amax(-1)).min() > 0.03
    assert first[:, tokenizer.convert_tokens_to_ids("#")].mean() > 0.9
    begun = tokenizer([f"{prompt}?" for prompt in prompts], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        written = model.generate(begun, do_sample=False, max_new_tokens=16)
    texts = [tokenizer.decode(row[begun.shape[1] :], skip_special_tokens=True) for row in written]
    right = sum(text.rpartition("#")[2] == problem.answer for text, problem in zip(texts, problems, strict=True))
    assert right > 0.9 * len(problems)
