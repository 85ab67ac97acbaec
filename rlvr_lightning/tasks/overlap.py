"""Training problems that are evaluation problems: the same text, or thirteen words in a row of it.

Thirteen words are what GPT-3 was checked by (Brown et al. 2020, arXiv 2005.14165, appendix C), and as there a run of words
that stands in more than ten training texts is a stock phrase and no evidence ("where m and n are relatively prime positive
integers, find m + n").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH = 13
# Training texts at most that may share a run of words if it is to mean something.
COMMON = 10
# Chinese, Japanese and Korean do without spaces: each of their characters counts as a word.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
WORD = re.compile(rf"[{_ALONE}]|[^\W\d_{_ALONE}]+|\d+")
WORD_OR_SIGN = re.compile(rf"{WORD.pattern}|[-+*/=<>^!%]")

Kind = Literal["exact", "13-gram"]


@dataclass(frozen=True)
class Text:
    """A problem to compare: its name and what is asked, without template."""

    id: str
    question: str


@dataclass(frozen=True)
class Hit:
    """A training problem that is, or shares thirteen words in a row with, an evaluation problem.

    Args:
        train: the training problem.
        evaluation: one of the evaluation problems.
        kind: `exact`, which goes first, or `13-gram`.
        shared: the words they share.
    """

    train: Text
    evaluation: Text
    kind: Kind
    shared: str


@dataclass(frozen=True)
class Overlap:
    """What two sets of problems have in common.

    Args:
        hits: one for each training problem concerned, in their order.
        num_train, num_evaluation: problems compared.
    """

    hits: tuple[Hit, ...]
    num_train: int
    num_evaluation: int

    def count(self, kind: Kind) -> int:
        """Training problems of a kind."""
        return sum(hit.kind == kind for hit in self.hits)


def words(text: str) -> list[str]:
    """Lower-case words and numbers; signs, LaTeX's too, are left out, and `2x` is two words."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def find_overlap(train: Sequence[Text], evaluation: Sequence[Text]) -> Overlap:
    """Compare each training problem with all evaluation problems, in one pass over either.

    Args:
        train: problems to learn from.
        evaluation: problems to measure on.
    """
    whole: dict[str, Text] = {}
    runs: dict[str, Text] = {}
    for text in evaluation:
        held = words(text.question)
        whole.setdefault(_normal(text.question, held), text)
        for run in _runs(held):
            runs.setdefault(run, text)
    times: Counter[str] = Counter()
    seen: set[str] = set()
    found: list[tuple[Text, str, list[str]]] = []
    for text in train:
        held = words(text.question)
        normal, shared = _normal(text.question, held), [run for run in dict.fromkeys(_runs(held)) if run in runs]
        if normal in whole or shared:
            found.append((text, normal, shared))
            if normal not in seen:  # the same text twice is one text
                seen.add(normal)
                times.update(shared)
    hits = []
    for text, normal, shared in found:
        rare = next((run for run in shared if times[run] <= COMMON), None)
        if normal in whole:
            hits.append(Hit(text, whole[normal], "exact", normal))
        elif rare is not None:
            hits.append(Hit(text, runs[rare], "13-gram", rare))
    return Overlap(tuple(hits), len(train), len(evaluation))


def _normal(question: str, held: list[str]) -> str:
    """What exact copies have in common. Of short texts the signs belong to it: 7+5= is another problem than 7-5=."""
    if len(held) < WIDTH:
        held = WORD_OR_SIGN.findall(unicodedata.normalize("NFKC", question).casefold())
    return " ".join(held) or question


def _runs(held: list[str]) -> list[str]:
    return [" ".join(held[start : start + WIDTH]) for start in range(len(held) - WIDTH + 1)]
