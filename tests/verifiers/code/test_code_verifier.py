"""What the code verifier says of a response: rewards, what is no program; and the settings it is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asking import FOUR, SLOW, judged, problem, reader

from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.code.verifier import CodeVerifier
from rlvr_lightning.verifiers.sandbox.limits import Limits


@pytest.mark.parametrize(
    ("code", "all_", "share", "first_failure"),
    [
        ("def half(x): return x // 2", 1.0, 1.0, 1.0),
        ("def half(x): return 1 if x == 4 else x // 2", 0.0, 0.75, 0.5),
        ("def half(x): return 0", 0.0, 0.25, 0.25),
        ("def half(x): return -1", 0.0, 0.0, 0.0),
        ("def half(x): return 1 / 0 if x == 2 else x // 2", 0.0, 0.75, 0.25),
        ("def other(x): return 0", 0.0, 0.0, 0.0),
        ("def half(x: return", 0.0, 0.0, 0.0),
    ],
)
def test_rewards_of_assertions(code: str, all_: float, share: float, first_failure: float) -> None:
    for reward, expected in (("all", all_), ("share", share), ("first_failure", first_failure)):
        verdict = judged(code, FOUR, reward=reward)
        assert (verdict.reward, verdict.correct) == (expected, all_ == 1.0)
        assert verdict.kind == ("correct" if all_ else "wrong")


def test_rewards_of_cases_go_on_after_a_failure_and_a_time_out_where_they_share() -> None:
    asked = reader(("1", "1"), ("2", "2"), ("3", "3"), ("4", "4"))
    code = "x = int(input())\nwhile x == 2: pass\nprint(x if x != 3 else 0)"
    settings: dict[str, Any] = {"timeout_s": {"stdin": 1.0}}
    assert judged(code, asked, reward="share", **settings) == Verdict(0.5, False, code, "timeout")
    assert judged(code, asked, reward="first_failure", **settings) == Verdict(0.25, False, code, "timeout")
    assert judged(code, asked, reward="all", **settings) == Verdict(0.0, False, code, "timeout")


def test_a_response_without_a_program_is_unparsable() -> None:
    assert CodeVerifier()("```text\nno code\n```", FOUR) == Verdict(0.0, False, None, "unparsable")
    assert CodeVerifier()("", FOUR) == Verdict(0.0, False, None, "unparsable")


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        ("I do not know.", "unparsable"),
        ("def half(x) return x", "unparsable"),
        ("(" * 10_000, "unparsable"),
        ("half = 2", "wrong"),
        ("def half(x):\n    return x // 2", "correct"),
        # Whoever opens a block means a program.
        ("```python\nI do not know.\n```", "wrong"),
    ],
)
def test_a_text_without_a_block_that_is_no_python_is_unparsable(response: str, kind: str) -> None:
    assert CodeVerifier(timeout_s=SLOW)(response, FOUR).kind == kind


def test_what_continues_the_problem_is_python_with_it(shared_data: Path) -> None:
    row = json.loads((shared_data / "humaneval.jsonl").read_text().splitlines()[0])
    problem = Problem(row["id"], ({"role": "user", "content": row["problem"]},), "", row)
    verifier = CodeVerifier(timeout_s=SLOW)
    kinds = [
        verifier(response, problem).kind for response in (row["canonical_solution"], "    return 5", "return what")
    ]
    assert kinds == ["correct", "wrong", "unparsable"]


def test_what_is_extracted_is_the_program() -> None:
    code = "def half(x):\n    return x // 2\n" + "# more\n" * 100
    verdict = CodeVerifier(timeout_s=SLOW)(f"So:\n```python\n{code}```", FOUR)
    assert (verdict.correct, verdict.extracted) == (True, code[:200])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"extract": "boxed"}, "CodeVerifier.extract must be last_block"),
        ({"reward": "half"}, "CodeVerifier.reward must be all"),
        ({"sandbox": "docker"}, "verifier.sandbox must be auto"),
        ({"timeout_s": {"check": 0}}, "CodeVerifier.timeout_s.check must be above 0"),
        ({"timeout_s": {"chekc": 1}}, "CodeVerifier.timeout_s.chekc"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CodeVerifier(**settings)


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"verifier.limits.memory_mb must be at least 64; got 1"):
        Limits(memory_mb=1)


def test_a_row_without_tests_is_an_error_of_its_data() -> None:
    with pytest.raises(DataError, match="problem p: "):
        judged("x = 1", problem())


def test_the_yaml_is_what_the_papers_say() -> None:
    verifier = component(compose(["verifier=code"]), "verifier")
    assert isinstance(verifier, CodeVerifier)
    assert (verifier.timeout_s["check"], verifier.timeout_s["livecodebench"]) == (3.0, 6.0)
    assert verifier.limits == Limits()
    assert verifier.judges == "code"


def test_the_command_line_reaches_every_setting() -> None:
    changed = ("extract=whole", "reward=share", "sandbox=rlimits", "timeout_s.check=7", "limits.memory_mb=99")
    verifier = component(compose(["verifier=code", *(f"verifier.{setting}" for setting in changed)]), "verifier")
    assert (verifier.extract, verifier.reward, verifier.sandbox) == ("whole", "share", "rlimits")
    assert (verifier.timeout_s["check"], verifier.limits.memory_mb) == (7, 99)
