"""Where in a response the answer stands, by convention. Every search takes time linear in the response."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem

# A response's answer lies near its end.
MAX_CHARACTERS = 20_000

_BOX_TOKENS = re.compile(
    r"\\(?:boxed|fbox)(?:\s{0,8}(?P<box>\{)|\s{1,8}(?P<bare>[^\s{}$\\]+))|\\[\\{}](?!boxed|fbox)|[{}]"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z<\[]|\s*$)")
_DELIMITED = re.compile(r"\$\$(.+)\$\$|\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.S)
_DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[(\[])")
_LATEX_NAMES = re.compile(r"\\(?:begin|end|operatorname|text[a-z]*|math[a-z]+)\s*\{[^{}]*\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_BOLD = re.compile(r"\*\*(?=\S)([^*]+)(?<=\S)\*\*")


@dataclass(frozen=True)
class Answer:
    """An answer's text.

    Args:
        text: the answer, or a passage that holds it.
        prose: whether it is a passage the answer must still be found in.
    """

    text: str
    prose: bool = False


def last_boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` or `\\fbox{...}`, braces balanced, or of a last `\\boxed 7`."""
    opened: list[int | None] = []
    start, content = -1, None
    for token in _BOX_TOKENS.finditer(text):
        if token["bare"] is not None:
            start, content = token.start(), token["bare"].rstrip(".,")
        elif token["box"] is not None:
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            begin = opened.pop()
            if begin is not None and begin > start:
                start, content = begin, text[begin : token.start()].strip()
    return content


def _tidy(text: str) -> Answer | None:
    """An answer without emphasis, full stop and mathematical delimiters."""
    text = _BOLD.sub(r"\1", text).strip("*_ \t\n").removesuffix(".").strip("*_ \t\n")
    delimited = _DELIMITED.fullmatch(text)
    if delimited is not None:
        text = next(group for group in delimited.groups() if group is not None).strip()
    if text.startswith("$") and text.count("$") == 1:  # a sum of money
        text = text[1:].strip()
    if not text:
        return None
    words = _WORD.findall(_LATEX_NAMES.sub("", text))
    return Answer(text, prose=_DELIMITER.search(text) is not None or len(words) > 1)


def _last(pattern: str, flags: int = 0, *, sentence: bool = False) -> Callable[[str], Answer | None]:
    """A search for the pattern's last match whose group `answer` is not blank."""
    compiled = re.compile(pattern, flags)

    def find(text: str) -> Answer | None:
        for match in reversed(list(compiled.finditer(text))):
            found = match["answer"]
            end = _SENTENCE_END.search(found) if sentence else None
            length = len(found) if end is None else end.start()
            answer = _tidy(found[:length])
            if answer is not None:
                # The library looks for words such as "answer is" too: a passage keeps its marker.
                end_of_answer = match.start("answer") + length
                return Answer(text[match.start() : end_of_answer], prose=True) if answer.prose else answer
        return None

    return find


def _boxed(text: str) -> Answer | None:
    content = last_boxed(text)
    return None if content is None else Answer(content.removesuffix("."))


def _free(text: str) -> Answer | None:
    answer = _tidy(text)
    return Answer(text.strip(), prose=True) if answer is not None and answer.prose else answer


# The rest of the line is looked at, not consumed: it may hold another marker.
_IS = r"(?:final[ \t]{1,3}answer\b[^\n]{0,200}?|answer)\s{1,3}is\b[ \t]{0,3}:?[ \t]{0,3}(?=(?P<answer>[^\n]+))"
EXTRACTORS: dict[str, Callable[[str], Answer | None]] = {
    "boxed": _boxed,
    "answer_tag": _last(r"<answer>(?P<answer>(?:(?!<answer>).)*?)</answer>", re.S | re.I),
    "gsm8k": _last(r"####(?P<answer>[^\n]+)"),
    "final_answer": _last(_IS, re.I, sentence=True),
    "answer_colon": _last(r"answer[ \t]{0,3}\*{0,2}[ \t]{0,3}:\s{0,3}(?=(?P<answer>[^\n]+))", re.I, sentence=True),
    "bracket": _last(r"\[(?P<answer>[^\[\]\n]*)\]"),
    "free": _free,
}
AUTO_ORDER = ("boxed", "answer_tag", "gsm8k", "final_answer", "answer_colon", "free")


def check_convention(extract: Any, name: str) -> None:
    """Is there such a convention?

    Raises:
        ConfigError: there is none.
    """
    if extract not in ("auto", *EXTRACTORS):
        raise ConfigError(f"{name} must be auto, {', '.join(EXTRACTORS)}; got {extract!r}")


def convention_of(problem: Problem, otherwise: str) -> str:
    """The convention a problem names in its `meta`, or the verifier's.

    Raises:
        ConfigError: it names none that there is.
    """
    named = problem.meta.get("extract")
    if named is None:
        return otherwise
    check_convention(named, f"problem {problem.id}: extract")
    return str(named)


def extract_answer(response: str, convention: str) -> Answer | None:
    """The answer, or None where the response has none.

    Args:
        response: its last 20,000 characters are read.
        convention: a key of `EXTRACTORS`, or `auto`: the first of `AUTO_ORDER` that finds something.

    Returns:
        The answer; a `\\boxed{...}` inside what another convention finds is the answer.
    """
    text = response[-MAX_CHARACTERS:]
    for name in AUTO_ORDER if convention == "auto" else (convention,):
        found = EXTRACTORS[name](text)
        # Four hashes before several words are a Markdown heading, which is no answer.
        if found is None or (convention == "auto" and name == "gsm8k" and found.prose):
            continue
        inner = last_boxed(found.text)
        return found if inner is None or name == "boxed" else Answer(inner)
    return None


def depth(text: str) -> int:
    """How deeply brackets of any kind are nested in a text, closed or not."""
    deepest = level = 0
    for character in text:
        if character in "([{":
            level += 1
            deepest = max(deepest, level)
        elif character in ")]}":
            level = max(0, level - 1)
    return deepest
