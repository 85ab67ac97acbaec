"""Numbers and a target, to be reached in many ways: how a policy spreads over forms of solutions decides what it finds.

`3,12,14>50=` may be answered `3*12=36;36+14=50`: every number once, every step true, the last result the target. There are no
solutions to imitate, only forms of them: a policy that tries few finds few (pass@k), one that tries all of them alike is seldom
right (avg@k).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.tasks.procedural import distinct, is_held_out
from rlvr_lightning.types import Problem

STYLES = ("sums", "products", "neither")
# Numbers of which all ways are kept.
FEW = 3


@dataclass(frozen=True)
class Way:
    """A way through all numbers.

    Args:
        worked: `3*12=36;36+14=50`.
        result: of the last step.
    """

    worked: str
    result: int


def steps(numbers: Sequence[int], max_value: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """All next steps whose result stays from 0 to a value: `3*12=36`, the result, and the numbers that are left."""
    for one, other in permutations(range(len(numbers)), 2):
        left, right = numbers[one], numbers[other]
        rest = tuple(number for place, number in enumerate(numbers) if place not in (one, other))
        for operator, result in (("+", left + right), ("-", left - right), ("*", left * right)):
            if 0 <= result <= max_value:
                yield f"{left}{operator}{right}={result}", result, (*rest, result)


def ways(numbers: Sequence[int], max_value: int) -> tuple[Way, ...]:
    """All ways through the numbers whose results stay in range: a result is a number like the others from then on."""
    # Dozens through three, and thousands through four, which are not kept.
    return _few_ways(tuple(numbers), max_value) if len(numbers) <= FEW else tuple(_ways(numbers, max_value))


def _ways(numbers: Sequence[int], max_value: int) -> Iterator[Way]:
    for worked, result, left in steps(numbers, max_value):
        if len(left) == 1:
            yield Way(worked, result)
        else:
            yield from (Way(f"{worked};{way.worked}", way.result) for way in ways(left, max_value))


@lru_cache(maxsize=4096)
def _few_ways(numbers: tuple[int, ...], max_value: int) -> tuple[Way, ...]:
    return tuple(_ways(numbers, max_value))


@lru_cache(maxsize=65536)
def targets(numbers: tuple[int, ...], max_value: int) -> frozenset[int]:
    """Where ways through the numbers may end."""
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(targets(tuple(sorted(left)), max_value) for _, _, left in steps(numbers, max_value)))


class Countdown:
    """The procedural task.

    Args:
        num_numbers: to be combined, at least 2.
        max_number: each is drawn from 1 to this.
        max_value: every result in the solutions that problems are made from lies between 0 and this.
        num_train: problems to learn from.
        num_held_out: problems to validate on.
        seed: of both sets.

    Raises:
        ConfigError: a number is out of range.
    """

    probes = ()
    styles = STYLES

    def __init__(
        self,
        num_numbers: int = 3,
        max_number: int = 20,
        max_value: int = 99,
        num_train: int = 10_000,
        num_held_out: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("num_numbers", num_numbers, 2),
            ("max_number", max_number, 1),
            ("max_value", max_value, max_number),
            ("num_train", num_train, 1),
            ("num_held_out", num_held_out, 0),
        ):
            if value < least:
                raise ConfigError(f"Countdown.{name} must be at least {least}; got {value}")
        self.num_numbers, self.max_number, self.max_value = num_numbers, max_number, max_value
        self.num_train, self.num_held_out, self.seed = num_train, num_held_out, seed

    def draw(self, rng: random.Random) -> str:
        """A question that has a solution, from either set."""
        while True:
            numbers = sorted(rng.randint(1, self.max_number) for _ in range(self.num_numbers))
            # Each target alike, however few ways lead there.
            found = sorted(targets(tuple(numbers), self.max_value) - {0})
            if found:
                return f"{','.join(map(str, numbers))}>{rng.choice(found)}="

    def draw_train(self, rng: random.Random) -> str:
        """A question of the training set."""
        while True:
            question = self.draw(rng)
            if not is_held_out(question):
                return question

    def train(self) -> Sequence[Problem]:
        """Problems to learn from."""
        return self._distinct(self.num_train, held_out=False)

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on."""
        return self._distinct(self.num_held_out, held_out=True)

    @staticmethod
    def style(response: str) -> str:
        """Which of the `styles` a response is written in, by its operators."""
        return "products" if "*" in response else "sums" if "+" in response or "-" in response else "neither"

    def _distinct(self, count: int, *, held_out: bool) -> list[Problem]:
        def draw(rng: random.Random, number: int) -> tuple[str, str]:
            return (question := self.draw(rng)), question

        larger = "task.max_number or task.num_numbers"
        drawn = distinct("Countdown", draw, seed=self.seed, count=count, held_out=held_out, larger=larger)
        return [_problem(question) for question in drawn]


def _problem(question: str) -> Problem:
    message = {"role": "user", "content": question}
    return Problem(id=question, messages=(message,), answer=question.rstrip("="))


@dataclass(frozen=True)
class CountdownDemonstrations:
    """Ways through the numbers, all forms of them alike; some reach the target.

    Args:
        aimed_share: of responses that are a solution, drawn from all there are; in [0, 1]. Others end wherever they do.

    Raises:
        ConfigError: it is no share.
    """

    aimed_share: float

    def __post_init__(self) -> None:
        if not 0 <= self.aimed_share <= 1:
            raise ConfigError(f"CountdownDemonstrations.aimed_share must be in [0, 1]; got {self.aimed_share}")

    def __call__(self, task: object, rng: random.Random) -> tuple[str, str]:
        """A question and a response to it."""
        if not isinstance(task, Countdown):
            raise ConfigError("pretrain=countdown shows ways through numbers: it needs task=countdown")
        question = task.draw_train(rng)
        numbers, _, target = question.rstrip("=").partition(">")
        shown = ways([int(number) for number in numbers.split(",")], task.max_value)
        if rng.random() < self.aimed_share:
            shown = tuple(way for way in shown if way.result == int(target))
        return question, rng.choice(shown).worked
