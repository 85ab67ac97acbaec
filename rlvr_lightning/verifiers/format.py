"""Whether a response has the form that was asked for (the format reward of DeepSeek-R1, arXiv 2501.12948, section 2.2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict

_NAME = re.compile(r"[A-Za-z][\w-]*")


class FormatVerifier:
    """Right when tags, pattern and length are all as asked.

    Args:
        tags: names of pairs `<name>...</name>`; each must stand there exactly once, one after another in this order.
        outside: whether text may stand before, between and after the tags.
        pattern: a regular expression the response must contain; None for any.
        min_characters: of a response at least.
        max_characters: of a response at most; None for any number.

    Raises:
        ConfigError: a tag is no name or stands there twice, the pattern is no regular expression, or the lengths are out of
            order.
    """

    judges: ClassVar[str] = "answer"

    def __init__(
        self,
        tags: Sequence[str] = ("think", "answer"),
        outside: bool = False,
        pattern: str | None = None,
        min_characters: int = 0,
        max_characters: int | None = None,
    ) -> None:
        for tag in tags:
            if not _NAME.fullmatch(tag):
                raise ConfigError(f"FormatVerifier.tags are names such as think; got {tag!r}")
        if len(set(tags)) < len(tags):
            raise ConfigError(f"FormatVerifier.tags must differ; got {', '.join(tags)}")
        if min_characters < 0 or (max_characters is not None and max_characters < min_characters):
            raise ConfigError(
                "FormatVerifier.min_characters must be from 0 to max_characters; "
                f"got {min_characters} and {max_characters}"
            )
        try:
            self._pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"FormatVerifier.pattern is no regular expression: {error}; got {pattern!r}") from error
        self.tags, self.outside = tuple(tags), outside
        self.min_characters, self.max_characters = min_characters, max_characters

    @property
    def isolated(self) -> bool:
        """A pattern may take for ever."""
        return self._pattern is not None

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """1 for a response of that form, 0 for any other.

        Args:
            response: what the model wrote.
            problem: plays no role.

        Returns:
            The verdict; `extracted` is what the last tag holds.
        """
        inside = self._inside(response)
        long_enough = self.min_characters <= len(response)
        short_enough = self.max_characters is None or len(response) <= self.max_characters
        fits = self._pattern is None or self._pattern.search(response) is not None
        correct = inside is not None and long_enough and short_enough and fits
        return Verdict(float(correct), correct, inside[-1].strip()[:200] if inside else None)

    def _inside(self, response: str) -> list[str] | None:
        """What each tag holds; None where they do not stand as asked."""
        inside, place = list[str](), 0
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if response.count(opening) != 1 or response.count(closing) != 1:
                return None
            start, end = response.index(opening), response.index(closing)
            if not place <= start < end or (response[place:start].strip() and not self.outside):
                return None
            inside.append(response[start + len(opening) : end])
            place = end + len(closing)
        outside = response[place:].strip() if self.tags and not self.outside else ""
        return None if outside else inside
