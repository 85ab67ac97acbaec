"""Are two outputs the same? Rules of the data sets; all of it on plain data, in the judge's process."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from rlvr_lightning.verifiers.code.tests import Rule

ANSWERS = frozenset({"yes", "no"})


def same_tokens(output: str, expected: str) -> bool:
    """Word by word, white space aside; the case of YES and NO does not matter."""
    ours, theirs = output.split(), expected.split()
    return len(ours) == len(theirs) and all(
        one == other or (one.lower() == other.lower() and other.lower() in ANSWERS)
        for one, other in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def same_lines(output: str, expected: str) -> bool:
    """LiveCodeBench's rule (lcb_runner/evaluation/testing_util.py): as many lines, each equal or equal decimal numbers."""
    ours, theirs = _lines(output), _lines(expected)
    if len(ours) != len(theirs):
        return False
    for one, other in zip(ours, theirs, strict=True):
        if one == other:
            continue
        numbers, wanted = _decimals(one), _decimals(other)
        if numbers is None or wanted is None or len(numbers) != len(wanted):
            return False
        # A signalling NaN cannot even be compared.
        if any(number.is_nan() or number != want for number, want in zip(numbers, wanted, strict=True)):
            return False
    return True


def same_value(result: Any, expected: Any) -> bool:
    """LiveCodeBench's rule for functions: equal, a tuple being a list at the top."""
    return bool((list(result) if isinstance(result, tuple) else result) == expected)


def _as_json(value: Any) -> Any:
    """A value as it would come back from JSON: tuples are lists, names of fields are texts."""
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value


def same_json(result: Any, expected: Any) -> bool:
    """Equal as JSON; what is expected may be wrapped in a list of one element, as in APPS."""
    ours, theirs = _as_json(result), _as_json(expected)
    return bool(ours == theirs or (isinstance(theirs, list) and len(theirs) == 1 and ours == theirs[0]))


RULES: dict[Rule, Callable[[Any, Any], bool]] = {
    "tokens": same_tokens,
    "lines": same_lines,
    "plain": same_value,
    "json": same_json,
}
