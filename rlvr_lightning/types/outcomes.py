"""What became of a problem: the verdicts of its responses, as statistics and filters read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcomes:
    """One problem's graded responses.

    Args:
        id: of the problem.
        correct: of each response; None without a verdict. Empty where a file has rewards alone.
        rewards: of each response; None without a verdict. Empty where a file has verdicts alone.
        cluster: problems of one name are not independent of each other (questions about one text); None: on its own.
    """

    id: str
    correct: tuple[bool | None, ...]
    rewards: tuple[float | None, ...] = ()
    cluster: str | None = None

    @property
    def solve_rate(self) -> float | None:
        """Share of right responses among those with a verdict; None where there is none."""
        judged = [correct for correct in self.correct if correct is not None]
        return sum(judged) / len(judged) if judged else None
