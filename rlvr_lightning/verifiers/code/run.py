"""One program in one sandbox: a conversation with the harness inside, which counts only if its secret comes back."""

from __future__ import annotations

import importlib
import json
import marshal
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlvr_lightning.errors import VerifierError
from rlvr_lightning.verifiers.code.inside.plain import decode
from rlvr_lightning.verifiers.code.inside.watch import WALL
from rlvr_lightning.verifiers.code.inside.wire import MAX_FRAME
from rlvr_lightning.verifiers.sandbox.limits import MEBIBYTE, Limits
from rlvr_lightning.verifiers.sandbox.places import libraries
from rlvr_lightning.verifiers.sandbox.protocol import Sandbox

INSIDE = "rlvr_lightning.verifiers.code.inside"
# In this order: each imports those before it alone.
MODULES = ("plain", "wire", "candidate", "tester", "kernel", "watch", "confine", "harness")
# A script without a file: reads code objects from standard input and makes the modules they are. It looks for no garbage:
# it lives shortly, and what it has loaded stays untouched, and so is not copied, in the processes it starts.
BOOT = f"""
import gc, marshal, os, sys
gc.disable()
def read(count):
    data = b""
    while len(data) < count:
        chunk = os.read(0, count - len(data))
        if not chunk:
            os._exit(1)
        data += chunk
    return data
for name, code in marshal.loads(read(int.from_bytes(read(8), "little"))):
    module = type(sys)(name)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    exec(code, vars(module))
gc.freeze()
sys.modules["{INSIDE}.harness"].main()
"""
# What an answer may take longer than the program was given: starting, killing, a busy machine [seconds].
GRACE_SECONDS = 30.0
# An answer's frame, and plain values, are at most so long [bytes].
MAX_ANSWER = 2**23
# Sets and dicts of a program's result are at most so large: more could be made to collide for minutes.
MAX_HASHED = 10_000
# An answer has a value and arguments that changed, by their place.
MAX_FIELDS = 100


@cache
def _modules() -> bytes:
    """The harness as code objects; sent to the same interpreter, so that none has to be read or compiled inside."""
    packages = INSIDE.split(".")
    empty = compile("", "<package>", "exec")
    found = [(".".join(packages[: end + 1]), empty) for end in range(len(packages))]
    for name in MODULES:
        module = importlib.import_module(f"{INSIDE}.{name}")
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        found.append((f"{INSIDE}.{name}", compile(source, f"<{name}>", "exec")))
    return marshal.dumps(found)


class Program:
    """A program in a sandbox of its own, for as long as the `with` block takes.

    Args:
        sandbox: where it runs.
        limits: of what it may use.
        sources: run one after the other.
        serves: whether its functions are called; else it reads its standard input.
        timeout_s: processor time of all its calls together, where it serves [seconds].

    Raises:
        VerifierError: the sandbox failed; the program is not to blame.
    """

    def __init__(
        self, sandbox: Sandbox, limits: Limits, sources: Sequence[str], *, serves: bool, timeout_s: float
    ) -> None:
        self._limits, self._first = limits, True
        self._session = sandbox.start(BOOT, limits)
        try:
            self._session.send(_modules(), GRACE_SECONDS)
            self._send(
                do="load",
                sources=list(sources),
                serves=serves,
                timeout=timeout_s,
                confinement=asdict(self._session.confinement),
                path=libraries(),
                limits={
                    "memory": limits.memory_mb * MEBIBYTE,
                    "processes": limits.processes,
                    "files": limits.open_files,
                    "file_size": limits.disk_mb * MEBIBYTE,
                    "output": limits.output_mb * MEBIBYTE,
                },
            )
        except BaseException:
            self._session.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def _send(self, **message: Any) -> None:
        self._session.send(json.dumps(message).encode(), GRACE_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._session.receive(WALL * seconds + GRACE_SECONDS, MAX_ANSWER))
        return answer

    def run(self, text: str, timeout_s: float) -> tuple[str, str]:
        """The program reads a text.

        Returns:
            How it ended (`exit CODE`, `timeout`, or `output`: more than it may write), and what it wrote.
        """
        self._send(do="run", input=text, timeout=timeout_s)
        answer = self._receive(timeout_s)
        output = self._session.receive(GRACE_SECONDS, self._limits.output_mb * MEBIBYTE + MAX_ANSWER)
        return answer["ended"], output.decode("utf-8", "replace")

    def call(self, function: str, args: Sequence[Any], timeout_s: float) -> tuple[str, Any]:
        """One of its functions is called.

        Args:
            function: its name, or that of a method of the program's `Solution`.
            args: plain values of JSON.
            timeout_s: of the call.

        Returns:
            How it ended (empty: it returned), and its result as values of base types.
        """
        # JSON arrays are lists and plain values already; objects need their mark.
        self._send(do="call", function=function, args=[_marked(item) for item in args], timeout=timeout_s)
        ended = self._receive(timeout_s)["ended"]
        if ended:
            return ended, None
        received = self._session.receive(GRACE_SECONDS, MAX_FRAME)
        if len(received) > MAX_ANSWER:
            return "output", None
        try:
            answer = json.loads(received, object_pairs_hook=_few)
            if "raised" in answer:
                return f"raised {str(answer['raised'][0])[:80]}", None
            return "", decode(answer["value"], most=MAX_HASHED)
        except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError, MemoryError):
            return "no value", None

    def assertions(self, setup: str, code: str, *, stop: bool, timeout_s: float) -> dict[str, Any]:
        """Assertions run in a process of their own.

        Returns:
            `passed`, `failed`, `total` (assertions in the code), `first` (failure), `ended` (None, or why it broke off).
        """
        self._send(do="script", setup=setup, code=code, stop=stop, timeout=timeout_s)
        return self._receive(timeout_s)

    def finish(self) -> None:
        """Ask for the secret back: everything reported so far counts.

        Raises:
            VerifierError: what answers is not the harness.
        """
        secret = secrets.token_hex(16)
        self._send(do="end", secret=secret)
        if self._receive(0.0) != {"secret": secret}:
            raise VerifierError("the sandbox did not give the run's secret back: nothing it reported counts")


def _few(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of an answer; none has many fields."""
    if len(pairs) > MAX_FIELDS:
        raise ValueError(f"{len(pairs)} fields")
    return dict(pairs)


def _marked(value: Any) -> Any:
    """A value of JSON as `plain.decode` reads it."""
    if isinstance(value, dict):
        return {"dict": [[key, _marked(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return value
