"""The program in a response."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# A fence opens with at most three spaces and closes with at least as many marks; whatever follows the opening is its language.
_FENCE = re.compile(r"^ {0,3}(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)[^\n`]*$")
PYTHON = frozenset({"", "python", "python3", "py", "py3", "python2", "pycon", "ipython", "{python}", "{.python}"})


@dataclass(frozen=True)
class Block:
    """A fenced block: its language in lower case, its text, whether it was closed."""

    language: str
    text: str
    closed: bool


def fenced_blocks(text: str) -> list[Block]:
    """All fenced blocks, in order; the last may be open where a response was cut."""
    blocks: list[Block] = []
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if opening is None:
            opening, lines = fence, []
        elif fence and fence["marks"].startswith(opening["marks"]) and not fence["language"]:
            blocks.append(Block(opening["language"].lower(), "\n".join(lines) + "\n", closed=True))
            opening = None
        else:
            lines.append(line)
    if opening is not None:
        blocks.append(Block(opening["language"].lower(), "\n".join(lines) + "\n", closed=False))
    return blocks


def _python_blocks(text: str) -> list[str]:
    """Texts of blocks of Python, those of no language included; open ones only where none is closed."""
    blocks = [block for block in fenced_blocks(text) if block.language in PYTHON and block.text.strip()]
    return [block.text for block in blocks if block.closed] or [block.text for block in blocks]


def _last(text: str) -> str | None:
    blocks = _python_blocks(text)
    return blocks[-1] if blocks else None


def _first(text: str) -> str | None:
    blocks = _python_blocks(text)
    return blocks[0] if blocks else None


def _joined(text: str) -> str | None:
    return "\n".join(_python_blocks(text)) or None


def _whole(text: str) -> str | None:
    return text if text.strip() else None


CONVENTIONS: dict[str, Callable[[str], str | None]] = {
    "last_block": _last,
    "first_block": _first,
    "all_blocks": _joined,
    "whole": _whole,
    # A response without any fence is code as it stands.
    "auto": lambda text: _last(text) if fenced_blocks(text) else _whole(text),
}


def extract_program(response: str, convention: str) -> str | None:
    """The code, or None where the response has none.

    Args:
        response: what the model wrote.
        convention: a key of `CONVENTIONS`; `auto` is the last fenced block, or all of a response without any.
    """
    return CONVENTIONS[convention](response)


def defines(code: str, name: str) -> bool:
    """Whether code defines a name at its top, seen from its text alone: nothing of it is parsed or run here."""
    found = re.escape(name)
    return re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{found}\b|^{found}[ \t]*[:=][^=]", code, re.M) is not None


def sources_of(code: str, problem: str, entry_point: str | None) -> list[str]:
    """What is run, one after the other: a whole program, or one that continues the problem's own code.

    Args:
        code: of the response.
        problem: the code the model was asked to complete, with its imports and helpers.
        entry_point: the function it defines; None where programs are always whole.
    """
    if entry_point is None:
        return [code]
    if not defines(code, entry_point):
        return [problem + code if problem.endswith("\n") else f"{problem}\n{code}"]
    start = re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", problem, re.M)
    # Helpers and imports of the problem stand before the function itself.
    return [problem[: start.start()], code] if start else [code]
