"""The role of a controller: the entropy of an optimizer step in, a setting's next value out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

State = dict[str, float | int | None]


@runtime_checkable
class Controller(Protocol):
    """Drives one number of one component, once an optimizer step.

    Args:
        drives: path of the number, such as `constraint.clip_high` or `constraint.clip_high.reasoning`.
        part: whose tokens' entropy is measured: a part's name, or None for all.
        least: the number never falls below this.
        most: and never rises above this.
    """

    drives: str
    part: str | None
    least: float
    most: float

    def start(self, configured: float) -> float:
        """Begin a run.

        Args:
            configured: the component's own value.

        Returns:
            The value of the first optimizer step, in [least, most].
        """
        ...

    def __call__(self, entropy: float, step: int, num_steps: int) -> float:
        """The value from the next optimizer step on, in [least, most].

        Args:
            entropy: mean over the tokens of the step just taken, over all ranks [nats]; finite.
            step: optimizer steps taken so far, that one included.
            num_steps: of the whole run; not positive where it has no end.
        """
        ...

    def state_dict(self) -> State:
        """What the next value depends on besides the settings."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go on from there."""
        ...
