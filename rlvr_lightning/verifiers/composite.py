"""Several verifiers as one: a weighted sum of their rewards, or all of them at once; each is logged by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict, VerdictKind
from rlvr_lightning.verifiers.protocol import Closable, Isolated, Judge, Startable

if TYPE_CHECKING:
    from rlvr_lightning.protocols import Verifier


class CompositeVerifier:
    """Judges by several verifiers; where one of them fails or is too late, so is the whole.

    Args:
        parts: verifiers by name.
        combine: `sum` of the parts' rewards by weight, right when the deciding part says so; or `all`: 1 and right when
            every part says right, else 0.
        weights: of the parts' rewards in the sum, by name; None for 1 each.
        decides: the part whose verdict is shown (its `extracted`, whether it is `unparsable`), and of a sum says what is
            right; None for the first.

    Raises:
        ConfigError: there are no parts, a name is none of theirs, a weight is missing or not finite, or `all` has weights.
    """

    def __init__(
        self,
        parts: Mapping[str, Verifier],
        combine: Literal["sum", "all"] = "sum",
        weights: Mapping[str, float] | None = None,
        decides: str | None = None,
    ) -> None:
        names = ", ".join(parts)
        if not parts:
            raise ConfigError("CompositeVerifier.parts must hold a verifier at least; got none")
        if combine not in ("sum", "all"):
            raise ConfigError(f"CompositeVerifier.combine must be sum or all; got {combine!r}")
        if weights is not None and (combine == "all" or set(weights) != set(parts)):
            raise ConfigError(
                f"CompositeVerifier.weights are for combine=sum, one for each of {names}; got {', '.join(weights)} with "
                f"combine={combine}"
            )
        if decides is not None and decides not in parts:
            raise ConfigError(f"CompositeVerifier.decides must be one of {names}; got {decides!r}")
        self.weights = dict.fromkeys(parts, 1.0) if weights is None else dict(weights)
        if not all(map(math.isfinite, self.weights.values())):
            raise ConfigError(f"CompositeVerifier.weights must be finite; got {self.weights}")
        self.parts, self.combine, self.decides = dict(parts), combine, decides or next(iter(parts))
        self.part_names = tuple(parts)

    @property
    def judges(self) -> str:
        """`code` where a part judges code."""
        code = any(isinstance(part, Judge) and part.judges == "code" for part in self.parts.values())
        return "code" if code else "answer"

    @property
    def isolated(self) -> bool:
        """Whether a part is."""
        return any(isinstance(part, Isolated) and part.isolated for part in self.parts.values())

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """The parts' rewards as one.

        Args:
            response: what the model wrote.
            problem: what it was asked.

        Returns:
            The verdict; `parts` are the parts' rewards.

        Raises:
            Exception: what a part raises.
        """
        verdicts = {name: part(response, problem) for name, part in self.parts.items()}
        late = next((one for one in verdicts.values() if one.kind in ("timeout", "error")), None)
        if late is not None:
            return late
        rewards = {name: verdict.reward for name, verdict in verdicts.items()}
        deciding = verdicts[self.decides]
        if self.combine == "all":
            correct = all(verdict.correct for verdict in verdicts.values())
            reward = float(correct)
        else:
            correct = deciding.correct
            reward = sum(self.weights[name] * value for name, value in rewards.items())
        kind: VerdictKind | None = "unparsable" if deciding.kind == "unparsable" else None
        return Verdict(reward, correct, deciding.extracted, kind, rewards)

    def start(self) -> None:
        """Get the parts ready. Calling it twice does no harm."""
        for part in self.parts.values():
            if isinstance(part, Startable):
                part.start()

    def close(self) -> None:
        """Let go of what the parts hold. Calling it twice does no harm."""
        for part in self.parts.values():
            if isinstance(part, Closable):
                part.close()
