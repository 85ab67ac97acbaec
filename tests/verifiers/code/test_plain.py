"""Values travel as what their base type holds."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from rlvr_lightning.verifiers.code.inside.plain import Kept, decode, encode

Point = namedtuple("Point", "x y")


class Colour(IntEnum):
    RED = 3


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __index__(self) -> int:
        return 5

    __hash__ = int.__hash__
    __int__ = __add__ = __index__  # type: ignore[assignment]


def travelled(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value, lambda _: 7))))


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            2**62,
            2**63,
            -(2**200),
            1.5,
            -0.0,
            1e308,
            float("inf"),
            "",
            "ä\ud800\x00",
            b"\x00\xff",
        ),
        *([], [1, [2.0, None]], (), (1, (2,)), {}, {1: "a", (1, 2): [3]}, set(), {1, 2}, frozenset({3}), 1 + 2j),
        *(Fraction(1, 3), Decimal("1.10"), range(1, 9, 2), deque([1, 2]), {None: {True: 0}}, [int, str, type(None)]),
    ],
)
def test_plain_values_arrive_as_they_are(value: Any) -> None:
    arrived = travelled(value)
    assert arrived == value
    assert type(arrived) is type(value)


def test_a_number_too_long_to_be_written_out_arrives() -> None:
    assert travelled([10**5000, -(10**5000)]) == [10**5000, -(10**5000)]


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (Colour.RED, 3),
        (Liar(7), 7),
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (bytearray(b"a"), b"a"),
    ],
)
def test_subclasses_arrive_as_their_base(value: Any, arrives: Any) -> None:
    arrived = travelled(value)
    assert arrived == arrives
    assert type(arrived) is type(arrives)


def test_other_objects_stay_where_they_are() -> None:
    arrived = travelled([object(), np.zeros(2)])
    assert [type(item) for item in arrived] == [Kept, Kept]
    assert arrived[0].number == 7


@pytest.mark.parametrize(
    "data",
    [
        {"spell": 1},
        {"int": "0x1", "kept": 2},
        {},
        {"int": 5},
        {"dict": [[1, 2, 3]]},
        {"set": [[1]]},
        {"decimal": "x"},
        {"fraction": ["0x1", "0x0"]},
        {"fraction": ["0x" + "1" * 10**6, "0x" + "3" * 10**6]},
        {"range": [1, 2, 0]},
        {"bytes": "zz"},
        {"kept": "x"},
        {"type": "type"},
        {"type": ["int"]},
    ],
)
def test_what_no_encoder_makes_is_refused(data: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, ArithmeticError)):
        decode(data)


def test_large_sets_are_refused_where_they_could_be_made_to_collide() -> None:
    assert decode({"set": list(range(10))}, most=10) == set(range(10))
    for tag in ("set", "frozenset", "dict"):
        with pytest.raises(ValueError, match="11 entries"):
            decode({tag: [[i, i] for i in range(11)]}, most=10)
