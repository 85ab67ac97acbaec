"""The layouts in which data sets hold tests, as one plain form."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from rlvr_lightning.errors import DataError
from rlvr_lightning.verifiers.code.prelude import LIVECODEBENCH

Rule = Literal["tokens", "lines", "plain", "json"]
# Of a record's compressed tests, unpacked [bytes].
MAX_UNPACKED = 2**29


@dataclass(frozen=True)
class Script:
    """Assertions on the names of a program.

    Args:
        kind: of the layout; time-outs go by it.
        setup: run before the program, and before the assertions.
        code: the assertions.
        entry_point: the function they are about, where the layout names it.
    """

    kind: str
    setup: str
    code: str
    entry_point: str | None = None


@dataclass(frozen=True)
class Case:
    """One input and what is expected of it: texts, or arguments and a result."""

    input: Any
    output: Any


@dataclass(frozen=True)
class Cases:
    """Inputs of a program, or arguments of one of its functions.

    Args:
        kind: of the layout; time-outs go by it.
        setup: run before the program.
        cases: the tests.
        function: its name; None for a program that reads its standard input.
        rule: how outputs are compared; see `compare`.
        time_limit_s: of a case, where the row has one.
    """

    kind: str
    setup: str
    cases: tuple[Case, ...]
    function: str | None
    rule: Rule
    time_limit_s: float | None = None


Tests = Script | Cases


def read_tests(row: Mapping[str, Any], where: str) -> Tests:
    """The tests of a row.

    Args:
        row: with `tests` (a mapping with `type`), or as HumanEval (`test`, `entry_point`), MBPP (`test_list`) or LiveCodeBench
            (`public_test_cases`, ...) have it themselves.
        where: the row's name, for messages.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    if row.get("checker") == "special":
        raise DataError(
            f"{where}: its checker is special: several outputs are right, which comparing texts cannot judge"
        )
    try:
        tests = _livecodebench(row) if "public_test_cases" in row else _layout(row)
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"{where}: its tests cannot be read: {type(error).__name__}: {error}") from error
    if (isinstance(tests, Cases) and not tests.cases) or (isinstance(tests, Script) and not tests.code.strip()):
        raise DataError(f"{where}: it has no test")
    return tests


def _layout(row: Mapping[str, Any]) -> Tests:
    # As the two data sets have them themselves.
    if "test_list" in row:
        lines = (*row["test_list"], *(row.get("challenge_test_list") or ()))
        return Script("asserts", row.get("test_setup_code") or "", "\n".join(lines))
    if isinstance(row.get("test"), str) and "entry_point" in row:
        return Script("check", "", f"{row['test']}\ncheck({row['entry_point']})\n", row["entry_point"])
    if not isinstance(row.get("tests"), Mapping):
        raise ValueError(f"the row needs a field 'tests' with a type; it has {', '.join(map(str, row)) or 'no fields'}")
    tests = row["tests"]
    kind = tests["type"]
    if kind == "asserts":
        return Script(kind, tests.get("setup") or "", "\n".join((*tests["asserts"], *tests.get("extra_asserts", ()))))
    if kind == "check":
        entry = tests.get("entry_point") or row["entry_point"]
        return Script(kind, "", f"{tests['code']}\ncheck({entry})\n", entry)
    if kind == "functional":
        return Script(kind, tests.get("prelude") or "", tests["code"], row.get("entry_point"))
    limit = row.get("time_limit_s")
    if kind == "stdin":
        cases = tuple(Case(str(case["input"]), str(case["output"])) for case in tests["cases"])
        return Cases(kind, "", cases, None, "tokens", limit)
    if kind == "call":
        name = str(tests["fn_name"]).removeprefix("Solution().")
        cases = tuple(Case(list(case["input"]), case["output"]) for case in tests["cases"])
        return Cases(kind, "", cases, name, "json", limit)
    raise ValueError(f"tests.type must be asserts, check, functional, stdin or call; got {kind!r}")


def _livecodebench(row: Mapping[str, Any]) -> Cases:
    """A record of LiveCodeBench (Jain et al., 2024; lcb_runner/benchmarks/code_generation.py)."""
    held = [*json.loads(row["public_test_cases"]), *_private(row.get("private_test_cases") or "[]")]
    metadata = row.get("metadata") or "{}"
    name = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
    if name is None:
        cases = tuple(Case(case["input"], case["output"]) for case in held)
        return Cases("livecodebench", LIVECODEBENCH, cases, None, "lines")
    cases = tuple(
        Case([json.loads(line) for line in case["input"].split("\n")], json.loads(case["output"])) for case in held
    )
    return Cases("livecodebench", LIVECODEBENCH, cases, name, "plain")


def _private(text: str) -> list[dict[str, Any]]:
    """Private tests: JSON, or base64 of zlib of a pickled string of JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        unpacking = zlib.decompressobj()
        unpacked = unpacking.decompress(base64.b64decode(text, validate=True), MAX_UNPACKED)
        if unpacking.unconsumed_tail:
            raise ValueError(f"more than {MAX_UNPACKED} bytes unpacked") from None
        found = json.loads(NoGlobals(io.BytesIO(unpacked)).load())
    if not isinstance(found, list):
        raise TypeError("no list of cases")
    return found


class NoGlobals(pickle.Unpickler):
    """Reads pickles of plain values; whatever would import or call something is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        """Refuse.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is refused: only plain values are read")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse; see `find_class`."""
        raise pickle.UnpicklingError(f"a reference ({pid!r}) is refused: only plain values are read")
