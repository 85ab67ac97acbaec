"""Values as plain data: how arguments and results travel between processes that do not trust each other.

Only the value of a base type counts: a subclass of `list` arrives as a list, whatever its `__eq__` says. Objects of other
classes stay where they are and travel as a number (`Kept`).
"""

from __future__ import annotations

import decimal
import fractions
from collections import deque
from collections.abc import Callable
from typing import Any

# Larger integers are written in hexadecimal, which no interpreter limits.
SMALL = 2**63
# Characters of a fraction's numbers: they are reduced, which takes quadratic time.
LONG = 2_000
MOST = 2**24
# Of the interpreter itself, by name: a test may say `int` to a function.
TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None), object)
}
ATOM_TAGS = ("int", "complex", "fraction", "decimal", "bytes", "type")


class Kept:
    """An object of another process, by its number there."""

    def __init__(self, number: int) -> None:
        self.number = number


def _scalar(value: Any) -> Any:
    """A value without parts as JSON, or `NotImplemented`. Base-class methods: an overriding subclass has no say."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        exact = int.__add__(value, 0)
        return exact if -SMALL <= exact < SMALL else {"int": hex(exact)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes.hex(bytes(value))}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, fractions.Fraction):
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if isinstance(value, decimal.Decimal):
        return {"decimal": str(value)}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    return _type(value)


def _type(value: Any) -> Any:
    """By identity: neither a metaclass nor a name has a say."""
    for name, kind in TYPES.items():
        if value is kind:
            return {"type": name}
    return NotImplemented


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """JSON of a value.

    Args:
        value: anything.
        keep: gives an object of another class its number.

    Raises:
        RecursionError: nested too deeply, or a value that holds itself.
    """
    plain = _scalar(value)
    if plain is not NotImplemented:
        return plain
    if isinstance(value, list):
        return [encode(item, keep) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, keep) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in dict.items(value)]}
    if isinstance(value, set):
        return {"set": [encode(item, keep) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item, keep) for item in frozenset.__iter__(value)]}
    if isinstance(value, deque):
        return {"deque": [encode(item, keep) for item in deque.__iter__(value)]}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encode(value.tolist(), keep)
    return {"kept": keep(value)}


def _atom(tag: str, held: Any) -> Any:
    if tag == "type":
        return TYPES[held]
    if tag == "bytes":
        return bytes.fromhex(held)
    if tag == "int":
        return int(held, 16)
    if tag == "complex":
        return complex(*held)
    if tag == "fraction":
        if max(map(len, held)) > LONG:
            raise ValueError("a fraction of long numbers")
        return fractions.Fraction(*(int(part, 16) for part in held))
    return decimal.Decimal(held)


def decode(data: Any, resolve: Callable[[int], Any] = Kept, most: int = MOST) -> Any:
    """The value of its JSON, of base types only.

    Args:
        data: what `encode` made, or anything else that was sent instead.
        resolve: what a number stands for on this side.
        most: entries of a set or dict.

    Raises:
        ValueError, TypeError, LookupError, RecursionError, ArithmeticError: it is nothing `encode` makes.
    """
    if isinstance(data, list):
        return [decode(item, resolve, most) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, held),) = data.items()
    if tag in ATOM_TAGS:
        return _atom(tag, held)
    if tag == "kept":
        return resolve(int(held))
    if tag == "range":
        return range(*held)
    if tag in ("set", "frozenset", "dict") and len(held) > most:
        raise ValueError(f"a {tag} of {len(held)} entries")
    if tag == "dict":
        return {decode(key, resolve, most): decode(item, resolve, most) for key, item in held}
    makers: dict[str, Callable[[Any], Any]] = {
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "deque": deque,
    }
    if tag not in makers:
        raise ValueError(f"no plain value: {tag!r}")
    return makers[tag](decode(item, resolve, most) for item in held)
