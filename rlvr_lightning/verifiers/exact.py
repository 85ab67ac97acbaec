"""An answer marked by a pattern, compared as text."""

from __future__ import annotations

import re
from typing import ClassVar

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict


class ExactVerifier:
    """Right when the last match's first group equals the gold answer, white space at the ends aside.

    Args:
        pattern: a regular expression with a group; the answer is what follows the last `#` by default.

    Raises:
        ConfigError: the pattern is no regular expression, or has no group.
    """

    judges: ClassVar[str] = "answer"

    def __init__(self, pattern: str = r"#([^#]*)$") -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"ExactVerifier.pattern is no regular expression: {error}; got {pattern!r}") from error
        if not self._pattern.groups:
            raise ConfigError(f"ExactVerifier.pattern needs a group around the answer; got {pattern!r}")

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """1 for a right answer, 0 for a wrong or missing one.

        Args:
            response: what the model wrote.
            problem: its `answer` is the gold answer.

        Returns:
            The verdict; `unparsable` where the pattern does not match.
        """
        found = [match[1] for match in self._pattern.finditer(response) if match[1] is not None]
        if not found:
            return Verdict(0.0, False, kind="unparsable")
        answer = found[-1].strip()
        correct = answer == problem.answer.strip()
        return Verdict(float(correct), correct, answer)
