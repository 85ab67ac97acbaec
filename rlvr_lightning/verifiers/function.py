"""A reward of the user's own: a plain Python function in a file, without a class or a yaml."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar

from rlvr_lightning.errors import ConfigError, VerifierError
from rlvr_lightning.types import Problem, Verdict


class FunctionVerifier:
    """Asks `score(response, answer, **row) -> float` of a file.

    `row` holds what else the problem's row has, its `id`, and the conversation as `messages`; a function without `**row` is
    given what it names of it.

    Args:
        path: `FILE.py:NAME`; modules beside the file can be imported.
        correct_from: a response counts as right from this reward.
        judges: `answer` or `code`: what of a response the function judges.

    Raises:
        ConfigError: there is no such file or function, the file cannot be executed (with its line), or the function takes no
            response and answer.
    """

    isolated: ClassVar[bool] = True

    def __init__(self, path: str, correct_from: float = 1.0, judges: str = "answer") -> None:
        file, colon, name = path.rpartition(":")
        if not colon or not file.endswith(".py") or not name.isidentifier():
            raise ConfigError(
                f"FunctionVerifier.path must be FILE.py:FUNCTION, such as my_reward.py:score; got {path!r}"
            )
        if not math.isfinite(correct_from):
            raise ConfigError(f"FunctionVerifier.correct_from must be a finite number; got {correct_from}")
        if judges not in ("answer", "code"):
            raise ConfigError(f"FunctionVerifier.judges must be answer or code; got {judges!r}")
        self.path, self.correct_from, self.judges = path, correct_from, judges
        self._file = Path(file).expanduser().resolve()
        found = vars(_executed(self._file)).get(name)
        if not callable(found):
            raise ConfigError(f"{self._file} has no function {name}")
        self._function: Callable[..., Any] = found
        code = inspect.unwrap(found)
        line = f":{code.__code__.co_firstlineno}" if isinstance(code, FunctionType) else ""
        self._where = f"{self._file.name}{line}"
        self._taken, self._named = _arguments(found, self._where)

    def __reduce__(self) -> tuple[type[FunctionVerifier], tuple[str, float, str]]:
        # The file is executed anew where the copy is: functions of a file that is no module cannot travel.
        name = self.path.rpartition(":")[2]
        return type(self), (f"{self._file}:{name}", self.correct_from, self.judges)

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """The function's number as the reward.

        Args:
            response: what the model wrote.
            problem: its `answer`, and its row.

        Raises:
            TimeoutError: the function raised one.
            VerifierError: it raised something else, or returned no number; the message has the file's line.
        """
        row = {**problem.meta, "id": problem.id, "messages": problem.messages}
        given = {
            key: value
            for key, value in row.items()
            if key not in self._taken and (self._named is None or key in self._named)
        }
        try:
            reward = self._function(response, problem.answer, **given)
        except TimeoutError:
            raise
        except Exception as error:
            raise VerifierError(f"{_place(error, self._file)}: {type(error).__name__}: {error}") from error
        try:
            value = float(reward)
        except (TypeError, ValueError) as error:
            raise VerifierError(f"{self._where}: it must return a number; got {reward!r}"[:200]) from error
        return Verdict(value, value >= self.correct_from)


def _executed(file: Path) -> ModuleType:
    """The file as a module.

    Raises:
        ConfigError: it is not there, or raises something.
    """
    if not file.is_file():
        raise ConfigError(f"verifier.path: {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"_reward_of_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Last, so that nothing beside the file stands in for a library.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    # Where data classes and pickles look for a module.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}") from error
    except Exception as error:
        raise ConfigError(f"{_place(error, file)}: {type(error).__name__}: {error}") from error
    return module


def _arguments(function: Callable[..., Any], where: str) -> tuple[frozenset[str], frozenset[str] | None]:
    """What a function calls the response and the answer, and the names of a row that it takes; None for all of them.

    Raises:
        ConfigError: it cannot be called with a response and an answer.
    """
    signature = inspect.signature(function)
    takes = signature.parameters.values()
    try:
        taken = frozenset(signature.bind_partial("response", "answer").arguments)
    except TypeError as error:
        raise ConfigError(f"{where} must take (response, answer, **row): {error}") from error
    every = any(one.kind is one.VAR_KEYWORD for one in takes)
    return taken, None if every else frozenset(signature.parameters)


def _place(error: BaseException, file: Path) -> str:
    """Where in the user's file an error came from: `my_reward.py:12`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"{file.name}:{frames[-1].lineno}" if frames else file.name
