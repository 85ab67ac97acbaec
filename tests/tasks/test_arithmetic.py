from __future__ import annotations

import ast
import operator
import random

import pytest

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.tasks.arithmetic import Arithmetic, Chain

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub}


def evaluate(expression: str) -> int:
    """An independent evaluation, by Python's own grammar."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return int(node.value)

    return value(ast.parse(expression, mode="eval").body)


def test_worked_example() -> None:
    chain = Chain(7, (("+", 12), ("-", 5), ("+", 9)))
    assert chain.expression == "7+12-5+9="
    assert chain.solve() == ("7+12=19;19-5=14;14+9=23#23", 23)


def test_falsified_step_is_carried_on() -> None:
    chain = Chain(7, (("+", 12), ("-", 5)))
    assert chain.solve(lambda result: result + 1) == ("7+12=20;20-5=16#16", 16)


def test_problems_are_as_promised() -> None:
    task = Arithmetic(num_train=300)
    train, held_out = task.train(), task.held_out()
    assert (len(train), len(held_out)) == (300, 64)
    assert len({problem.id for problem in (*train, *held_out)}) == 364
    for problem in (*train, *held_out):
        (message,) = problem.messages
        assert message == {"role": "user", "content": problem.id}
        assert int(problem.answer) == evaluate(problem.id.removesuffix("="))


def test_sets_of_any_seeds_are_disjoint() -> None:
    train = {problem.id for problem in Arithmetic(num_terms=2, max_operand=9, num_train=80, seed=0).train()}
    held_out = {problem.id for problem in Arithmetic(num_terms=2, max_operand=9, num_held_out=8, seed=1).held_out()}
    assert train.isdisjoint(held_out)


@pytest.mark.parametrize(("num_terms", "max_operand", "max_value"), [(2, 5, 5), (4, 20, 99), (6, 50, 60)])
def test_every_value_stays_in_range(num_terms: int, max_operand: int, max_value: int) -> None:
    task, rng = Arithmetic(num_terms, max_operand, max_value), random.Random(0)
    for _ in range(500):
        chain = task.draw(rng)
        assert len(chain.steps) == num_terms - 1
        assert 1 <= chain.start <= max_operand
        worked, value = chain.solve()
        steps = worked.split("#")[0].split(";")
        for step in steps:
            left, right = step.split("=")
            assert evaluate(left) == int(right)
            assert 0 <= int(right) <= max_value
        assert value == evaluate(chain.expression.removesuffix("="))


@pytest.mark.parametrize("max_value", [5, 7, 20])
def test_operands_stay_in_range(max_value: int) -> None:
    task, rng = Arithmetic(5, 5, max_value), random.Random(0)
    for _ in range(500):
        assert all(1 <= operand <= 5 for _, operand in task.draw(rng).steps)


def test_seed_decides() -> None:
    first, same, other = (Arithmetic(num_train=50, seed=seed) for seed in (0, 0, 1))
    assert first.train() == same.train()
    assert first.held_out() == same.held_out()
    assert first.train() != other.train()


def test_drawn_for_training_is_never_held_out() -> None:
    task, rng = Arithmetic(num_terms=2, max_operand=3, num_held_out=1), random.Random(0)
    held_out = {problem.id for problem in task.held_out()}
    assert all(task.draw_train(rng).expression not in held_out for _ in range(300))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_terms": 1}, r"Arithmetic\.num_terms must be at least 2; got 1"),
        ({"max_operand": 0}, r"Arithmetic\.max_operand must be at least 1; got 0"),
        ({"max_value": 19}, r"Arithmetic\.max_value must be at least 20; got 19"),
        ({"num_train": 0}, r"Arithmetic\.num_train must be at least 1; got 0"),
        ({"template": "Compute this."}, r"task\.template must contain {problem}; got 'Compute this\.'"),
        ({"num_held_out": -1}, r"Arithmetic\.num_held_out must be at least 0; got -1"),
    ],
)
def test_setting_out_of_range(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arithmetic(**setting)


def test_too_many_problems_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"distinct problems of this size; asked for 100: raise task\.num_terms"):
        Arithmetic(num_terms=2, max_operand=2, max_value=4, num_train=100).train()


def test_no_held_out_problems() -> None:
    assert Arithmetic(num_held_out=0).held_out() == []


def test_the_template_words_the_question_and_changes_nothing_else() -> None:
    plain, worded = (
        Arithmetic(num_train=5, num_held_out=3, **more) for more in ({}, {"template": "Only the number: {problem}"})
    )  # type: ignore[arg-type]
    for before, after in zip([*plain.train(), *plain.held_out()], [*worded.train(), *worded.held_out()], strict=True):
        assert (after.id, after.answer) == (before.id, before.answer)
        assert after.messages == ({"role": "user", "content": f"Only the number: {before.messages[0]['content']}"},)
