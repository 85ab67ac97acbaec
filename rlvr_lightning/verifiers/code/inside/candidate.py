"""The candidate's process: runs the program, then answers calls. Nothing here is a secret, nothing here is believed."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from rlvr_lightning.verifiers.code.inside.plain import decode, encode
from rlvr_lightning.verifiers.code.inside.wire import Gone, receive, send


def run_sources(sources: list[str], name: str) -> dict[str, Any]:
    """The names a program leaves.

    Args:
        sources: run one after the other in one module.
        name: of the module; `__main__` for a program that reads its input.
    """
    module = types.ModuleType(name)
    # Programs call exit(), which only an interactive interpreter has.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    sys.modules[name] = module
    for source in sources:
        exec(compile(source, "<program>", "exec"), vars(module))
    return vars(module)


class Answering:
    """Answers what a test asks of the program's objects.

    Args:
        fd: of the pair of sockets.
        names: what the program left.
    """

    def __init__(self, fd: int, names: dict[str, Any]) -> None:
        self._fd, self._names, self._kept = fd, names, list[Any]()
        self._solution: Any = None

    def _keep(self, value: Any) -> int:
        self._kept.append(value)
        return len(self._kept) - 1

    def _resolve(self, number: int) -> Any:
        return self._kept[number]

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _decode(self, data: Any) -> Any:
        return decode(data, self._resolve)

    def _call(self, target: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        values = [self._decode(item) for item in args]
        result = target(*values, **{key: self._decode(item) for key, item in kwargs.items()})
        answer = {"value": self._encode(result)}
        # A test may look at what a function did to its arguments.
        changed = {
            index: after
            for index, (before, value) in enumerate(zip(args, values, strict=True))
            if isinstance(value, list | dict | set) and (after := self._encode(value)) != before
        }
        return {**answer, "changed": changed} if changed else answer

    def _function(self, name: str) -> Any:
        """A method of the one `Solution`, or a function of that name."""
        if self._solution is None and "Solution" in self._names:
            self._solution = self._names["Solution"]()
        if self._solution is not None:
            return getattr(self._solution, name)
        return self._names[name]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One answer: `value`, and `changed` arguments by their place.

        Raises:
            Exception: whatever the program raises.
        """
        operation = request["do"]
        if operation == "name":
            if request["name"] not in self._names:
                raise NameError(f"name {request['name']!r} is not defined")
            return {"value": {"kept": self._keep(self._names[request["name"]])}}
        if operation == "function":
            return self._call(self._function(request["name"]), request["args"], {})
        target = self._kept[request["of"]]
        if operation == "attribute":
            return {"value": self._encode(getattr(target, request["name"]))}
        if operation == "items":
            return {"value": [self._encode(item) for item in target]}
        if operation == "value":
            return {"value": self._encode(target)}
        return self._call(target, request["args"], request["kwargs"])

    def serve(self) -> None:
        """Answer until nobody asks any more."""
        while True:
            try:
                request = receive(self._fd)
            except Gone:
                return
            send(self._fd, guarded(partial(self.answer, request)))


def guarded(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an action gives, or `raised`: the kind of exception and its text."""
    try:
        return action()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - a candidate may raise anything; the test decides what it means
        name = type(error).__name__
        try:
            return {"raised": [name, str(error)[:200]]}
        except Exception:  # noqa: BLE001 - an exception whose text cannot be had
            return {"raised": [name, ""]}


def serve_program(fd: int, sources: list[str]) -> None:
    """Run a program, say how that went, answer calls of what it left.

    Args:
        fd: of the pair of sockets.
        sources: of the program.
    """
    names: dict[str, Any] = {}

    def load() -> dict[str, Any]:
        names.update(run_sources(sources, "solution"))
        return {"value": None}

    loaded = guarded(load)
    send(fd, loaded)
    if "raised" not in loaded:
        Answering(fd, names).serve()
