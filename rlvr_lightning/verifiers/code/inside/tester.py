"""The test's process: runs assertions on a program that lives in another process.

Names the test does not define stand for the program's objects. Arguments go there and results come back as plain data, so
nothing of the program's classes, patched modules or built-ins is ever here.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from rlvr_lightning.verifiers.code.inside.plain import decode, encode
from rlvr_lightning.verifiers.code.inside.wire import Gone, receive, send

COUNTED = "try:\n    assert True\nexcept Exception as __error__:\n    __failed__(__error__)\nelse:\n    __passed__()"


class RemoteError(Exception):
    """The program raised an exception that is not one of Python's own."""


class Stopped(BaseException):
    """A test failed and no further one is wanted."""


class Line:
    """Asks the program's process.

    Args:
        fd: of the pair of sockets.
        deadline: of the whole test, on the monotonic clock [seconds].
    """

    def __init__(self, fd: int, deadline: float) -> None:
        self._fd, self._deadline = fd, deadline

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer.

        Raises:
            Exception: what the program raised, of the same kind where it is one of Python's.
            Gone: no answer.
        """
        send(self._fd, request)
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next answer; see `ask`."""
        answer = receive(self._fd, self._deadline)
        if not isinstance(answer, dict):
            raise Gone("no message")
        if "raised" in answer:
            name, text = answer["raised"]
            kind = getattr(builtins, str(name), RemoteError)
            known = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
            raise (kind if known else RemoteError)(str(text))
        return answer

    def value(self, request: dict[str, Any]) -> Any:
        """The decoded value of an answer."""
        return self.decoded(self.ask(request).get("value"))

    def decoded(self, data: Any) -> Any:
        """A value of base types, its other objects as `Remote`.

        Raises:
            Gone: what was sent is no value.
        """
        try:
            return decode(data, lambda number: Remote(self, number))
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
            raise Gone("no message") from error


class Remote:
    """An object of the program. It equals nothing but itself: its own `__eq__` is not asked.

    Args:
        line: to the program.
        number: of the object there.
    """

    def __init__(self, line: Line, number: int) -> None:
        self._line, self._number = line, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it with plain values and objects of the program; lists and dicts become what it made of them."""
        request = {
            "do": "call",
            "of": self._number,
            "args": [encode(item, number_of) for item in args],
            "kwargs": {key: encode(item, number_of) for key, item in kwargs.items()},
        }
        answer = self._line.ask(request)
        for place, after in answer.get("changed", {}).items():
            _take_over(args[int(place)], self._line.decoded(after))
        return self._line.decoded(answer.get("value"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._line.value({"do": "attribute", "of": self._number, "name": name})

    def __iter__(self) -> Iterator[Any]:
        answer = self._line.ask({"do": "items", "of": self._number})
        return iter(self._line.decoded(answer.get("value")))

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number


def number_of(value: Any) -> int:
    """The number of an object of the program.

    Raises:
        TypeError: it is the test's own and cannot go there.
    """
    if not isinstance(value, Remote):
        raise TypeError(f"a {type(value).__name__} cannot be handed to the program")
    return value._number


def _take_over(mine: Any, changed: Any) -> None:
    """An argument becomes what the function made of it."""
    if isinstance(mine, list) and isinstance(changed, list):
        mine[:] = changed
    elif isinstance(mine, dict | set) and isinstance(changed, dict | set):
        mine.clear()
        mine.update(changed)


class Counting(ast.NodeTransformer):
    """Each assertion counts itself instead of ending the test."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """One assertion."""
        self.count += 1
        block = ast.parse(COUNTED).body[0]
        assert isinstance(block, ast.Try)
        block.body = [node]
        return ast.copy_location(block, node)


def free_names(tree: ast.AST, known: dict[str, Any]) -> list[str]:
    """Names a test uses and does not define: the program's.

    A built-in function or a module is the test's own unless every name it uses is one: then the program is about a function of that name.

    Args:
        tree: the test.
        known: names that its setup defines.
    """
    used: dict[str, None] = {}
    bound = set(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                used[node.id] = None
            else:
                bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
    free = [name for name in used if name not in bound]
    own = [name for name in free if not hasattr(builtins, name) and name not in sys.stdlib_module_names]
    return own or [name for name in free if name in sys.stdlib_module_names or callable(getattr(builtins, name, None))]


class Assertions:
    """Runs one test's code and counts.

    Args:
        line: to the program.
        stop: end with the first failure.
    """

    def __init__(self, line: Line, stop: bool) -> None:
        self._line, self._stop = line, stop
        self.passed, self.failed, self.total = 0, 0, 0
        self.first: str | None = None

    def _count_passed(self) -> None:
        self.passed += 1

    def _count_failed(self, error: BaseException) -> None:
        self.failed += 1
        self.first = self.first or f"{type(error).__name__}: {error}"[:200]
        if self._stop:
            raise Stopped

    def _namespace(self, tree: ast.AST, setup: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "tests"}
        exec(compile(setup, "<setup>", "exec"), names)
        names.update(__passed__=self._count_passed, __failed__=self._count_failed)
        for name in free_names(tree, names):
            # A name the program does not have is not defined here either: the test fails where it uses it.
            with contextlib.suppress(NameError):
                found = self._line.value({"do": "name", "name": name})
                names[name] = self._line.value({"do": "value", "of": number_of(found)})
        for node in ast.walk(tree):
            # The program may have imported a module its test relies on; the test takes its own copy.
            if isinstance(node, ast.Name) and node.id in sys.stdlib_module_names and node.id not in names:
                names[node.id] = importlib.import_module(node.id)
        return names

    def run(self, setup: str, code: str) -> None:
        """Run to the end, or to the first failure.

        Args:
            setup: run first; the program has its own copy.
            code: with assertions.

        Raises:
            Gone: the program ended, or took too long.
        """
        tree = ast.parse(code)
        counting = Counting()
        counted = ast.fix_missing_locations(counting.visit(ast.parse(code)))
        self.total = counting.count
        names = self._namespace(tree, setup)
        try:
            exec(compile(counted, "<tests>", "exec"), names)
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - whatever a test raises is its failure
            self.failed += 1
            self.first = self.first or f"{type(error).__name__}: {error}"[:200]


def serve_test(report: int, fd: int, setup: str, code: str, stop: bool, deadline: float) -> None:
    """Run a test and report `passed`, `failed`, `total`, `first` (the first failure) and `ended`: why it broke off.

    Args:
        report: where the result goes.
        fd: of the pair of sockets to the program.
        setup, code: the test.
        stop: end with the first failure.
        deadline: on the monotonic clock [seconds].
    """
    line = Line(fd, deadline)
    running = Assertions(line, stop)
    ended: str | None = None
    try:
        line.read()
        running.run(setup, code)
    except Gone as gone:
        ended = gone.reason
    except Exception as error:  # noqa: BLE001 - the program did not load, or the setup fails without it
        running.failed += 1
        running.first = f"{type(error).__name__}: {error}"[:200]
    counts = {"passed": running.passed, "failed": running.failed, "total": running.total}
    send(report, {**counts, "first": running.first, "ended": ended})
