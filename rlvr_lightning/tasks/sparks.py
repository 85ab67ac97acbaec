"""A task in which exploration decides: a shortcut that is right now and then, and a rare way that can be learned.

`3+4-7+2+5~7=` is a chain modulo 10 and, behind `~`, a rumour of its result, which is right in 45 % of the problems. Answered
directly, `#7`, one can do no better than repeat the rumour: the chain is too long for one look. Answered step by step,
`?+47-70+22+57#7`, each step is easy, and with practice all of them are right. The first token of that style, `?`, is what the
Lp-Reg paper (arXiv 2510.03222) calls a reasoning spark: improbable, and lost if it is punished whenever it fails.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.tasks.procedural import distinct, is_held_out
from rlvr_lightning.types import Probe, Problem

DIGITS = "0123456789"
# They only serve as noise.
LETTERS = "abcdefghijklmnopqrstuvwx"
SPARK = "?"
STYLES = ("direct", "steps", "neither")


@dataclass(frozen=True)
class RumouredChain:
    """A chain of additions and subtractions modulo 10, and what is rumoured of its result.

    Args:
        start: the first digit.
        steps: operator (`+` or `-`) and operand of each step.
        rumour: a digit.
    """

    start: int
    steps: tuple[tuple[str, int], ...]
    rumour: int

    @property
    def chain(self) -> str:
        """`3+4-7+2+5`."""
        return str(self.start) + "".join(f"{operator}{operand}" for operator, operand in self.steps)

    @property
    def question(self) -> str:
        """`3+4-7+2+5~7=`."""
        return f"{self.chain}~{self.rumour}="

    @property
    def results(self) -> list[int]:
        """After each step."""
        value, found = self.start, []
        for operator, operand in self.steps:
            value = (value + operand if operator == "+" else value - operand) % 10
            found.append(value)
        return found


class Sparks:
    """The procedural task.

    Args:
        num_steps: operations in a chain, at least 1.
        rumour_share: of problems whose rumour is right, in [0, 1]; in both sets as exactly as may be.
        num_train: problems to learn from.
        num_held_out: problems to validate on.
        seed: of both sets.

    Raises:
        ConfigError: a number is out of range.
    """

    # What to watch: is the first token still the spark?
    probes = (Probe("spark", "", SPARK),)
    styles = STYLES

    def __init__(
        self,
        num_steps: int = 4,
        rumour_share: float = 0.45,
        num_train: int = 20_000,
        num_held_out: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("num_steps", num_steps, 1),
            ("num_train", num_train, 1),
            ("num_held_out", num_held_out, 0),
        ):
            if value < least:
                raise ConfigError(f"Sparks.{name} must be at least {least}; got {value}")
        if not 0 <= rumour_share <= 1:
            raise ConfigError(f"Sparks.rumour_share must be in [0, 1]; got {rumour_share}")
        self.num_steps, self.rumour_share = num_steps, rumour_share
        self.num_train, self.num_held_out, self.seed = num_train, num_held_out, seed

    def draw(self, rng: random.Random, *, right: bool | None = None) -> RumouredChain:
        """One chain, from either set.

        Args:
            rng: draws it.
            right: whether its rumour is; None leaves that to chance.
        """
        steps = tuple((rng.choice("+-"), rng.randrange(10)) for _ in range(self.num_steps))
        chain = RumouredChain(rng.randrange(10), steps, 0)
        result, by_chance = chain.results[-1], rng.random() < self.rumour_share
        wrong = (result + rng.randrange(1, 10)) % 10
        return replace(chain, rumour=result if (by_chance if right is None else right) else wrong)

    def draw_train(self, rng: random.Random) -> RumouredChain:
        """One chain of the training set."""
        while True:
            drawn = self.draw(rng)
            if not is_held_out(drawn.chain):
                return drawn

    def train(self) -> Sequence[Problem]:
        """Problems to learn from."""
        return self._distinct(self.num_train, held_out=False)

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on."""
        return self._distinct(self.num_held_out, held_out=True)

    @staticmethod
    def style(response: str) -> str:
        """Which of the `styles` a response is written in, by its first token."""
        return {"#": "direct", SPARK: "steps"}.get(response[:1], "neither")

    def _distinct(self, count: int, *, held_out: bool) -> list[Problem]:
        def draw(rng: random.Random, number: int) -> tuple[str, RumouredChain]:
            # So many of so many: one is right whenever the share of all before it has come to a whole number.
            before = number * self.rumour_share
            drawn = self.draw(rng, right=int(before + self.rumour_share + 1e-9) > int(before + 1e-9))
            return drawn.chain, drawn

        chains = distinct("Sparks", draw, seed=self.seed, count=count, held_out=held_out, larger="task.num_steps")
        return [_problem(chain) for chain in chains]


def _problem(drawn: RumouredChain) -> Problem:
    message = {"role": "user", "content": drawn.question}
    return Problem(id=drawn.question, messages=(message,), answer=str(drawn.results[-1]))


@dataclass(frozen=True)
class SparksDemonstrations:
    """Both styles in a mixture.

    Args:
        steps_share: of responses that go step by step.
        junk_share: of responses that are neither: a few letters. All others repeat the rumour.
        slip_rate: probability that a step's result is another digit or a letter, each of them equally likely. With a wrong digit
            the chain goes on, after a letter its digits are arbitrary.

    Raises:
        ConfigError: a share is out of range.
    """

    steps_share: float
    junk_share: float = 0.0
    slip_rate: float = 0.3

    def __post_init__(self) -> None:
        for name in ("steps_share", "junk_share", "slip_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"SparksDemonstrations.{name} must be in [0, 1]; got {getattr(self, name)}")
        if self.steps_share + self.junk_share > 1:
            raise ConfigError("SparksDemonstrations: steps_share and junk_share add up to more than 1")

    def __call__(self, task: object, rng: random.Random) -> tuple[str, str]:
        """A question and a response to it."""
        if not isinstance(task, Sparks):
            raise ConfigError("pretrain=sparks shows chains with rumours: it needs task=sparks")
        drawn, choice = task.draw_train(rng), rng.random()
        if choice < self.steps_share:
            return drawn.question, self._steps(drawn, rng)
        if choice < self.steps_share + self.junk_share:
            return drawn.question, "".join(rng.choices(LETTERS, k=rng.randint(1, 4)))
        return drawn.question, f"#{drawn.rumour}"

    def _steps(self, drawn: RumouredChain, rng: random.Random) -> str:
        value: int | None = drawn.start
        shown, worked = str(drawn.start), [SPARK]
        for operator, operand in drawn.steps:
            # Drawn in any case: the steps before a slip do not depend on it.
            arbitrary = rng.randrange(10)
            result = arbitrary if value is None else (value + operand if operator == "+" else value - operand) % 10
            shown = str(result)
            if rng.random() < self.slip_rate:
                shown = rng.choice([character for character in DIGITS + LETTERS if character != shown])
            value = int(shown) if shown in DIGITS else None
            worked.append(f"{operator}{operand}{shown}")
        return f"{''.join(worked)}#{shown}"
