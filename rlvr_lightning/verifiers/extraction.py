"""Where in a response the answer stands, by convention."""

from __future__ import annotations

import re
from collections.abc import Callable

# A response's answer lies near its end, and nobody's answer is longer.
MAX_CHARACTERS = 20_000


def last_boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` or `\\fbox{...}`, braces balanced."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for index in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0) if text[index - 1] != "\\" else 0
            if depth == 0:
                return text[match.end() : index].strip()
    bare = re.findall(r"\\boxed\s+([^\s$]+)", text)
    return bare[-1] if bare else None


def _last_group(pattern: str, flags: int = 0) -> Callable[[str], str | None]:
    compiled = re.compile(pattern, flags)

    def find(text: str) -> str | None:
        found = [match.strip() for match in compiled.findall(text) if match.strip()]
        return found[-1] if found else None

    return find


def _clean_sentence(find: Callable[[str], str | None]) -> Callable[[str], str | None]:
    def clean(text: str) -> str | None:
        found = find(text)
        return None if found is None else found.strip("*_ ").removesuffix(".").strip("*_ ") or None

    return clean


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "boxed": last_boxed,
    "answer_tag": _last_group(r"<answer>(.*?)</answer>", re.S | re.I),
    "gsm8k": _last_group(r"####[ \t]*([^\n]+)"),
    "final_answer": _clean_sentence(_last_group(r"(?:final\s+)?answer\s+is\s*:?\s*([^\n]+)", re.I)),
    "answer_colon": _clean_sentence(_last_group(r"answer\s*\**\s*:\s*([^\n]+)", re.I)),
    "bracket": _last_group(r"\[([^\[\]\n]*)\]"),
    "free": lambda text: text.strip() or None,
}
AUTO_ORDER = ("boxed", "answer_tag", "gsm8k", "final_answer", "answer_colon", "free")


def extract_answer(response: str, convention: str) -> str | None:
    """The answer's text, or None where the response has none.

    Args:
        response: its last 20,000 characters are read.
        convention: a key of `EXTRACTORS`, or `auto`: the first convention that finds something.
    """
    text = response[-MAX_CHARACTERS:]
    for name in AUTO_ORDER if convention == "auto" else (convention,):
        found = EXTRACTORS[name](text)
        if found is not None:
            inner = last_boxed(found) if name not in ("boxed", "free") else None
            return found if inner is None else inner
    return None
