"""Chains of additions and subtractions, made on the fly: the task a laptop learns in minutes.

`7+12-5+9=` is answered `7+12=19;19-5=14;14+9=23#23`: one step per operator, then the result behind `#`. Train and
held-out problems are told apart by a hash of their text, so they are disjoint whatever the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.tasks.procedural import distinct, is_held_out
from rlvr_lightning.tasks.rows import check_template
from rlvr_lightning.types import Problem


@dataclass(frozen=True)
class Chain:
    """A chain of operations, from left to right.

    Args:
        start: the first number.
        steps: operator (`+` or `-`) and operand of each step.
    """

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def expression(self) -> str:
        """`7+12-5=`."""
        return str(self.start) + "".join(f"{operator}{operand}" for operator, operand in self.steps) + "="

    def solve(self, perturb: Callable[[int], int] = lambda result: result) -> tuple[str, int]:
        """The worked solution and its result; `perturb` may falsify a step's result, which is then carried on."""
        value, worked = self.start, []
        for operator, operand in self.steps:
            result = perturb(value + operand if operator == "+" else value - operand)
            worked.append(f"{value}{operator}{operand}={result}")
            value = result
        return f"{';'.join(worked)}#{value}", value


class Arithmetic:
    """The procedural task.

    Args:
        num_terms: numbers in a chain, at least 2.
        max_operand: each number is drawn from 1 to this.
        max_value: every intermediate result lies between 0 and this.
        num_train: problems to learn from (they are made when asked for).
        num_held_out: problems to validate on.
        seed: of both sets.
        template: the user message; `{problem}` stands for the chain (`7+12-5=`).

    Raises:
        ConfigError: a number is out of range, or the template lacks `{problem}`.
    """

    def __init__(
        self,
        num_terms: int = 4,
        max_operand: int = 20,
        max_value: int = 99,
        num_train: int = 20_000,
        num_held_out: int = 64,
        seed: int = 0,
        template: str = "{problem}",
    ) -> None:
        check_template(template)
        for name, value, least in (
            ("num_terms", num_terms, 2),
            ("max_operand", max_operand, 1),
            ("max_value", max_value, max_operand),
            ("num_train", num_train, 1),
            ("num_held_out", num_held_out, 0),
        ):
            if value < least:
                raise ConfigError(f"Arithmetic.{name} must be at least {least}; got {value}")
        self.num_terms, self.max_operand, self.max_value = num_terms, max_operand, max_value
        self.num_train, self.num_held_out, self.seed = num_train, num_held_out, seed
        self.template = template

    def draw(self, rng: random.Random) -> Chain:
        """One chain, from either set."""
        value = start = rng.randint(1, self.max_operand)
        steps = []
        for _ in range(self.num_terms - 1):
            operand = rng.randint(1, self.max_operand)
            signs = [s for s in "+-" if 0 <= (value + operand if s == "+" else value - operand) <= self.max_value]
            if not signs:  # neither direction stays in range: shrink the operand to the larger margin
                operand, signs = max(value, self.max_value - value), ["-" if value > self.max_value - value else "+"]
            operator = rng.choice(signs)
            value = value + operand if operator == "+" else value - operand
            steps.append((operator, operand))
        return Chain(start, tuple(steps))

    def draw_train(self, rng: random.Random) -> Chain:
        """One chain of the training set."""
        while True:
            chain = self.draw(rng)
            if not is_held_out(chain.expression):
                return chain

    def train(self) -> Sequence[Problem]:
        """Problems to learn from."""
        return self._distinct(self.num_train, held_out=False)

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on."""
        return self._distinct(self.num_held_out, held_out=True)

    def _distinct(self, count: int, *, held_out: bool) -> list[Problem]:
        def draw(rng: random.Random, number: int) -> tuple[str, Chain]:
            chain = self.draw(rng)
            return chain.expression, chain

        larger = "task.num_terms or task.max_operand"
        chains = distinct("Arithmetic", draw, seed=self.seed, count=count, held_out=held_out, larger=larger)
        return [self._problem(chain) for chain in chains]

    def _problem(self, chain: Chain) -> Problem:
        message = {"role": "user", "content": self.template.replace("{problem}", chain.expression)}
        return Problem(id=chain.expression, messages=(message,), answer=str(chain.solve()[1]))


@dataclass(frozen=True)
class NoisyChains:
    """Worked chains whose steps are wrong now and then.

    The skill is there and the sampling is noisy: that is what reinforcement learning can mend, and what merely stopping early is not.

    Args:
        error_rate: probability that a step's result is wrong (by one, by two or by ten); the error is carried on. In [0, 1).

    Raises:
        ConfigError: it is no such probability.
    """

    error_rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.error_rate < 1:
            raise ConfigError(f"NoisyChains.error_rate must be in [0, 1); got {self.error_rate}")

    def __call__(self, task: object, rng: random.Random) -> tuple[str, str]:
        """A chain and its worked solution."""
        if not isinstance(task, Arithmetic):
            raise ConfigError("pretrain=arithmetic shows chains of numbers: it needs task=arithmetic")
        chain = task.draw_train(rng)
        worked, _ = chain.solve(lambda result: self._falsify(result, rng))
        return chain.expression, worked

    def _falsify(self, result: int, rng: random.Random) -> int:
        return result + rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < self.error_rate else result
