from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.function import FunctionVerifier
from rlvr_lightning.verifiers.judging import Judgement, judge
from rlvr_lightning.verifiers.pool import VerifierPool

PROBLEM = Problem("p7", ({"role": "user", "content": "2+2?"},), "4", {"level": 3, "answer": "no", "response": "no"})


def written(tmp_path: Path, body: str) -> str:
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "my_reward.py").write_text(body)
    return f"{tmp_path / 'my_reward.py'}:score"


def judged(path: str, response: str = "4", **settings: Any) -> Judgement:
    return judge(FunctionVerifier(path, **settings), response, PROBLEM)


@pytest.mark.parametrize(
    "head",
    [
        "def score(response, answer, **row): return row['level'] / 6 + (response == answer) * (row['id'] == 'p7')",
        "def score(response, answer, level): return level / 6 + (response == answer)",
        "def score(completion, gold, *, level, nothing=0): return level / 6 + (completion == gold) + nothing",
        "def score(response, answer): return 0.5 + (response == answer)",
        "from beside import HALF\ndef score(response, answer): return HALF + (response == answer)",
        "class Score:\n  def __call__(self, response, answer): return 0.5 + (response == answer)\nscore = Score()",
    ],
)
def test_the_functions_number_is_the_reward(tmp_path: Path, head: str) -> None:
    path = written(tmp_path, head)
    assert judged(path).verdict == Verdict(1.5, True)
    assert judged(path, "5").verdict == Verdict(0.5, False)
    assert judged(path, "5", correct_from=0.5).verdict == Verdict(0.5, True)


def test_true_is_one(tmp_path: Path) -> None:
    path = written(tmp_path, "def score(response, answer, **row): return response == answer")
    assert judged(path).verdict == Verdict(1.0, True)


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (
            "def score(response, answer):\n  x = 1\n  return x / 0\n",
            "error",
            "my_reward.py:3: ZeroDivisionError: division by",
        ),
        (
            "def inner():\n  raise KeyError('k')\ndef score(response, answer):\n  return inner()\n",
            "error",
            "my_reward.py:2: KeyError: 'k'",
        ),
        (
            "import json\n\ndef score(response, answer):\n  return json.loads('{')\n",
            "error",
            "my_reward.py:4: JSONDecodeError",
        ),
        (
            "\ndef score(response, answer):\n  return 'good'\n",
            "error",
            "my_reward.py:2: it must return a number; got 'good'",
        ),
        ("def score(response, answer): return None", "error", "my_reward.py:1: it must return a number; got None"),
        (
            "def score(response, answer, *, missing): return 1",
            "error",
            "my_reward.py: TypeError: score() missing 1 required",
        ),
        (
            "def score(response, answer, missing): return 1",
            "error",
            "my_reward.py: TypeError: score() missing 1 required",
        ),
        ("def score(response, answer): return float('nan')", "error", "ValueError: reward nan is not finite"),
        ("def score(response, answer): raise TimeoutError('slow')", "timeout", "TimeoutError: slow"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, body: str, kind: str, told: str) -> None:
    found = judged(written(tmp_path, body))
    assert (found.kind, found.verdict) == (kind, None)
    assert told in (found.error or "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = 1\nx = = 2\n", "my_reward.py:2: SyntaxError: invalid syntax"),
        ("x = 1\n\nimport no_such_library\n", "my_reward.py:3: ModuleNotFoundError: No module named 'no_such_library'"),
        ("def other(response, answer): return 1", "my_reward.py has no function score"),
        ("score = 1", "my_reward.py has no function score"),
        (
            "\ndef score(response): return 1",
            r"my_reward.py:2 must take \(response, answer, \*\*row\): too many positional",
        ),
        ("def score(): return 1", r"my_reward.py:1 must take \(response, answer, \*\*row\): too many positional"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionVerifier(written(tmp_path, body))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "my_reward.py"}, "FunctionVerifier.path must be FILE.py:FUNCTION, .*; got 'my_reward.py'"),
        ({"path": "my_reward:score"}, "FunctionVerifier.path must be FILE.py:FUNCTION"),
        ({"path": "no_such.py:score"}, "no_such.py does not exist"),
        ({"path": "x.py:score", "correct_from": float("nan")}, "FunctionVerifier.correct_from must be a finite number"),
        ({"path": "x.py:score", "judges": "prose"}, "FunctionVerifier.judges must be answer or code; got 'prose'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionVerifier(**settings)


def test_it_travels_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "def score(response, answer, **row): return 0.5")
    monkeypatch.chdir(tmp_path)
    verifier = FunctionVerifier("my_reward.py:score", 0.25, "code")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(verifier))
    assert (copy.path, copy.correct_from, copy.judges) == (path, 0.25, "code")
    assert copy("4", PROBLEM) == Verdict(0.5, True)


def test_a_function_that_hangs_or_exits_is_stopped(tmp_path: Path) -> None:
    body = """
        import os, time
        def score(response, answer, **row):
            if response == "hang":
                while True: pass
            if response == "exit":
                os._exit(0)
            return 1.0
    """
    path = written(tmp_path, re.sub(r"(?m)^ {8}", "", body))
    pool = VerifierPool(FunctionVerifier(path), workers=1, timeout_s=5.0)
    found = pool.collect([pool.submit(response, PROBLEM) for response in ("4", "hang", "exit", "5")])
    pool.close()
    assert [one.kind for one in found] == ["correct", "timeout", "error", "correct"]
