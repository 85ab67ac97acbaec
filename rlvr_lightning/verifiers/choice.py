"""Multiple choice: the letter an answer names. Who names two of them names none."""

from __future__ import annotations

import re
import string
from typing import ClassVar

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.extraction import check_convention, convention_of, extract_answer

# What only sets a letter in another face, and marks of emphasis.
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|textit|mathsf|textsf|rm|bf)\s*\{([^{}]*)\}")
# A letter before one of these is no article.
_AFTER = "or|and|nor|but|is|are|was|as|because|since"
_MARKS = str.maketrans("", "", "*_$`\\")


class ChoiceVerifier:
    """Right when the response's answer names the letter of the gold answer.

    A letter in brackets, `(B)`, goes before letters that stand alone; an `A` or `I` before a word in small letters is a
    word. Small letters count only where nothing else stands there.

    Args:
        choices: the letters there are, in capitals.
        extract: where the answer stands, as for `MathVerifier`; a problem whose `meta` names a convention as `extract` goes
            by that.

    Raises:
        ConfigError: the choices are no two different capitals at least, or an unknown convention.
    """

    judges: ClassVar[str] = "answer"

    def __init__(self, choices: str = "ABCDE", extract: str = "auto") -> None:
        if len(choices) < 2 or len(set(choices)) < len(choices) or not set(choices) <= set(string.ascii_uppercase):
            raise ConfigError(
                f"ChoiceVerifier.choices must be different capital letters, two at least; got {choices!r}"
            )
        check_convention(extract, "ChoiceVerifier.extract")
        self.choices, self.extract = choices, extract
        self._bracketed = re.compile(rf"[(\[]\s*([{choices}])\s*[)\]]")
        # Not within a word, nor the beginning of one, nor an article.
        self._alone = re.compile(rf"(?<![\w'])([{choices}])(?![\w'])(?!(?<=[AI])\s+(?!(?:{_AFTER})\b)[a-z])")
        self._whole = re.compile(rf"\W*([{choices}])\W*", re.IGNORECASE)

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """1 for the right letter, 0 for another or none.

        Args:
            response: what the model wrote.
            problem: its `answer` is the letter, alone or before its text: `B`, `(B)`, `B. Paris`.

        Returns:
            The verdict; `extracted` is the letter, and `unparsable` a response that names none, or several.

        Raises:
            DataError: the gold answer names no letter.
        """
        gold = re.match(rf"\W*([{self.choices}])(?!\w)", problem.answer)
        if gold is None:
            raise DataError(f"problem {problem.id}: the gold answer {problem.answer[:80]!r} is none of {self.choices}")
        answer = extract_answer(response, convention_of(problem, self.extract))
        letter = None if answer is None else self.letter(answer.text)
        if letter is None:
            return Verdict(0.0, False, kind="unparsable")
        correct = letter == gold[1]
        return Verdict(float(correct), correct, letter)

    def letter(self, text: str) -> str | None:
        """The letter a text names; None for none, or several."""
        plain = _WRAPPED.sub(r" \1 ", text).translate(_MARKS)
        whole = self._whole.fullmatch(plain)
        if whole is not None:
            return whole[1].upper()
        for pattern in (self._bracketed, self._alone):
            named = set(pattern.findall(plain))
            if named:
                return named.pop() if len(named) == 1 else None
        return None
