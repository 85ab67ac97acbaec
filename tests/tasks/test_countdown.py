"""Numbers and a target: problems can be solved, what is shown is what was asked for, and what counts as right."""

from __future__ import annotations

import random
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from test_sparks import TINY

from rlvr_lightning import Countdown, CountdownVerifier
from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.tasks.countdown import CountdownDemonstrations, targets, ways
from rlvr_lightning.training.pretraining import pretrain
from rlvr_lightning.types import Problem, Verdict


def parsed(question: str) -> tuple[list[int], int]:
    numbers, _, target = question.rstrip("=").partition(">")
    return [int(number) for number in numbers.split(",")], int(target)


def test_all_ways_through_three_numbers_by_hand() -> None:
    """Two of three are combined, and the result with the third, from either side."""
    numbers, expected = (2, 3, 7), set()
    for first, second, third in permutations(numbers):
        for one, other in product("+-*", repeat=2):
            begun = eval(f"{first}{one}{second}")
            for left, right in ((begun, third), (third, begun)):
                result = eval(f"{left}{other}{right}".replace("--", "+"))
                if 0 <= begun <= 40 and 0 <= result <= 40:
                    expected.add((f"{first}{one}{second}={begun};{left}{other}{right}={result}", result))
    assert {(way.worked, way.result) for way in ways(numbers, 40)} == expected
    assert len(expected) > 30
    assert max(result for _, result in expected) == 35
    assert targets(numbers, 40) == {result for _, result in expected}


def test_ways_through_four_numbers_go_on_with_three() -> None:
    found = {way.worked: way.result for way in ways((1, 2, 3, 4), 20)}
    assert found["1+2=3;3*3=9;4+9=13"] == 13
    assert found["3*4=12;2-1=1;12+1=13"] == 13
    assert len(found) > 1500
    assert set(found.values()) == targets((1, 2, 3, 4), 20)
    assert Countdown(4, 9, num_train=200).train()[0].answer.count(",") == 3


def test_problems_can_be_solved_and_sets_are_apart() -> None:
    task, verifier = Countdown(num_train=300), CountdownVerifier()
    train, held_out = task.train(), task.held_out()
    assert (len(train), len(held_out)) == (300, 64)
    assert len({problem.id for problem in (*train, *held_out)}) == 364
    for problem in held_out:
        numbers, target = parsed(problem.id)
        assert numbers == sorted(numbers)
        assert max(numbers) <= task.max_number
        assert 0 < target <= task.max_value
        found = ways(tuple(numbers), task.max_value)
        verdicts = [verifier(way.worked, problem).correct for way in found]
        assert verdicts == [way.result == target for way in found]
        assert any(verdicts)
    assert task.held_out() == held_out
    assert Countdown(seed=1).held_out() != held_out


def test_styles_go_by_the_operators() -> None:
    texts = ("3*4=12;12-2=10", "3+4=7", "7-2=5", "", "7")
    assert [Countdown.style(text) for text in texts] == ["products", "sums", "sums", "neither", "neither"]


def test_what_is_shown_is_aimed_as_often_as_was_asked_for() -> None:
    task, rng, verifier = Countdown(num_numbers=3), random.Random(0), CountdownVerifier()
    never = [CountdownDemonstrations(0.0)(task, rng) for _ in range(2000)]
    always = [CountdownDemonstrations(1.0)(task, rng) for _ in range(300)]
    half = [CountdownDemonstrations(0.5)(task, rng) for _ in range(2000)]
    by_chance, right, mixed = (
        sum(verifier(way, Problem(asked, (), asked.rstrip("="))).correct for asked, way in shown) / len(shown)
        for shown in (never, always, half)
    )
    assert right == 1
    assert mixed == pytest.approx(0.5 + 0.5 * by_chance, abs=0.04)
    assert by_chance < 0.2
    # No question is a held-out one.
    held_out = {problem.id for problem in Countdown(3, num_held_out=300).held_out()}
    assert not held_out & {asked for asked, _ in (*never, *always, *half)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Countdown(num_numbers=1), "Countdown.num_numbers must be at least 2; got 1"),
        (lambda: Countdown(max_number=100), "Countdown.max_value must be at least 100; got 99"),
        (
            lambda: Countdown(2, 3, num_train=500).train(),
            "has only about .* distinct problems .*: raise task.max_number",
        ),
        (lambda: CountdownDemonstrations(1.1), r"aimed_share must be in \[0, 1\]; got 1.1"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_every_setting_of_the_recipe_changes_the_model(tmp_path: Path) -> None:
    one_stage = [override for override in TINY if "stages.1" not in override]

    def made(name: str, *overrides: str) -> list[torch.Tensor]:
        cfg = compose(["task=countdown", "pretrain=countdown", *one_stage, *overrides], "pretrain")
        pretrain(component(cfg, "task"), component(cfg, "pretrain"), tmp_path / name)
        return list(ModelSource(str(tmp_path / name)).load().state_dict().values())

    before = made("before")
    assert all(torch.equal(*pair) for pair in zip(before, made("again"), strict=True))
    changes = {
        "characters": "'=0123456789+-*;,>'",
        "hidden_size": "16",
        "num_layers": "2",
        "num_heads": "1",
        "seed": "1",
        "stages.0.steps": "3",
        "stages.0.batch_size": "5",
        "stages.0.lr": "1e-2",
        "stages.0.demonstrations.aimed_share": "1.0",
    }
    for number, (setting, value) in enumerate(changes.items()):
        after = made(str(number), f"pretrain.{setting}={value}")
        same = len(before) == len(after) and all(
            one.shape == other.shape and torch.equal(one, other) for one, other in zip(before, after, strict=True)
        )
        assert not same, setting


GOLD = Problem("q", (), "3,12,14>50")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("3*12=36;36+14=50", Verdict(1.0, True, "50")),
        ("12*3=36\n14 + 36 = 50\n", Verdict(1.0, True, "50")),
        # A step that is not true, though the last one ends well.
        ("3*12=35;36+14=50", Verdict(0.0, False, "50")),
        ("3*12=35;35+15=50", Verdict(0.0, False, "50")),
        # A number too often, too seldom, or one that was not given.
        ("3*12=36;36+14=50;50*1=50", Verdict(0.0, False, "50")),
        ("12+12=24;24+14=38;38+12=50", Verdict(0.0, False, "50")),
        ("36+14=50", Verdict(0.0, False, "50")),
        ("3*12=36", Verdict(0.0, False, "36")),
        ("14*3=42;42+12=54", Verdict(0.0, False, "54")),
        ("3-12=-9", Verdict(0.0, False, None, "unparsable")),
        ("50", Verdict(0.0, False, None, "unparsable")),
        ("", Verdict(0.0, False, None, "unparsable")),
        ("3*12=36;", Verdict(0.0, False, None, "unparsable")),
        ("3*12=36;36+14=5٠", Verdict(0.0, False, None, "unparsable")),
        (f"3*12={'9' * 5000}", Verdict(0.0, False, None, "unparsable")),
    ],
)
def test_verdicts(response: str, expected: Verdict) -> None:
    assert CountdownVerifier()(response, GOLD) == expected


def test_equal_numbers_may_each_be_used_once() -> None:
    problem = Problem("q", (), "2,2,5>9")
    assert CountdownVerifier()("2+2=4;4+5=9", problem).correct
    assert not CountdownVerifier()("2+5=7;7+2=9;9*2=18", problem).correct
    assert not CountdownVerifier()("2*2=4;2+5=7", problem).correct


def test_the_bundled_model_knows_the_rules_and_seldom_the_way() -> None:
    source, problems = ModelSource("countdown"), Countdown().held_out()
    model, tokenizer = source.load().eval(), source.tokenizer
    prompts = [
        tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True, tokenize=False) for p in problems
    ]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    with torch.no_grad():
        written = model.generate(**encoded, do_sample=True, top_k=0, max_new_tokens=24, num_return_sequences=16)
    texts = tokenizer.batch_decode(written[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    verifier, true, right = CountdownVerifier(), 0, 0
    for place, text in enumerate(texts):
        problem = problems[place // 16]
        verdict = verifier(text, problem)
        right += verdict.correct
        # By the rules, wherever it ends.
        numbers = problem.answer.partition(">")[0]
        true += (
            verdict.extracted is not None and verifier(text, Problem("q", (), f"{numbers}>{verdict.extracted}")).correct
        )
    assert true / len(texts) > 0.85
    assert 0.09 < right / len(texts) < 0.19


def test_a_target_beside_a_number_that_is_left_is_not_enough() -> None:
    problem = Problem("q", (), "2,3,5>5")
    assert CountdownVerifier()("2+3=5", problem) == Verdict(0.0, False, "5")
    assert CountdownVerifier()("3-2=1;1*5=5", problem).correct
