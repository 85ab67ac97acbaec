"""What the code verifier says of a response."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError, DataError, HardwareError, VerifierError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.code import run
from rlvr_lightning.verifiers.code.verifier import CodeVerifier
from rlvr_lightning.verifiers.pool import VerifierPool
from rlvr_lightning.verifiers.sandbox import bubblewrap, choose
from rlvr_lightning.verifiers.sandbox.folders import PREFIX, remove_abandoned
from rlvr_lightning.verifiers.sandbox.limits import Limits

SLOW = dict.fromkeys(("check", "asserts", "functional", "stdin", "call", "livecodebench"), 20.0)


def problem(**row: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": row.get("problem", "")},), "", row)


def asserts(*lines: str, setup: str = "") -> Problem:
    return problem(tests={"type": "asserts", "setup": setup, "asserts": list(lines)})


def judged(code: str, asked: Problem, **settings: Any) -> Verdict:
    return CodeVerifier(extract="whole", **{"timeout_s": SLOW, **settings})(code, asked)


def reader(*pairs: tuple[str, str], **row: Any) -> Problem:
    cases = [{"input": given, "output": wanted} for given, wanted in pairs]
    return problem(tests={"type": "stdin", "cases": cases}, **row)


FOUR = asserts(*(f"assert half({2 * i}) == {i}" for i in range(4)))


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


def test_several_programs_at_once_in_threads_of_the_pool() -> None:
    verifier = CodeVerifier(timeout_s={"asserts": 2.0})
    pool = VerifierPool(verifier)
    responses = [f"```python\ndef half(x):\n    return x // 2 + {i % 2}\n```" for i in range(8)] + ["", "while 1: pass"]
    found = pool.collect([pool.submit(response, FOUR) for response in responses])
    pool.close()
    assert pool.num_processes == 0
    # Equal responses are judged once.
    assert [one.kind for one in found] == ["correct", "wrong"] * 4 + ["unparsable", "timeout"]


def test_folders_of_a_killed_judge_go_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while a program runs under Landlock or resource limits: its folder stays, until somebody else comes."""
    script = (
        "import sys; from rlvr_lightning.verifiers.sandbox.folders import new_folder; (new_folder() / 'left').touch(); "
        "print('there', flush=True); sys.stdin.read()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    killed, alive, ending = started
    killed.kill()
    killed.wait()
    ending.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove_abandoned()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f"{PREFIX}{alive.pid}_")
    assert [path.name for path in left.rglob("left")] == ["left"]
    alive.communicate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("strength", choose.KINDS)
def test_packages_are_found_where_the_environment_lies(strength: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in /tmp, where programs write."""
    if (reason := choose.failure(strength)) is not None:
        pytest.skip(f"{strength} does not work here: {reason}")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "packaged.py").write_text("def half(x):\n    return x // 2\n")
        (Path(folder) / "packaged.py").chmod(0o644)
        monkeypatch.setattr(sysconfig, "get_path", lambda kind: folder)
        verifier = CodeVerifier(sandbox=strength, timeout_s=SLOW)
        writes = "open('/tmp/mine', 'w').write('x')\n" if strength == "bubblewrap" else ""
        assert verifier(f"```python\n{writes}from packaged import half\n```", FOUR).kind == "correct"
        spoils = f"open('{folder}/packaged.py', 'a').write('#')\n"
        if strength != "rlimits" or os.geteuid() == 0:
            assert verifier(f"```python\n{spoils}from packaged import half\n```", FOUR).kind == "wrong"


def test_what_is_extracted_is_the_program() -> None:
    code = "def half(x):\n    return x // 2\n" + "# more\n" * 100
    verdict = CodeVerifier(timeout_s=SLOW)(f"So:\n```python\n{code}```", FOUR)
    assert (verdict.correct, verdict.extracted) == (True, code[:200])


@pytest.mark.parametrize(
    ("code", "test", "correct"),
    [
        # What assertions may do with a program that is in another process.
        ("class Pair:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a", "assert f(Pair(3)) == 3", True),
        ("class Pair:\n    def __init__(self, a): self.a = a", "assert Pair(3).a == 3", True),
        ("def f(xs): xs.sort()", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]", True),
        ("def f(d): d['k'] = 1", "d = {}\nf(d)\nassert d == {'k': 1}", True),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]", True),
        ("def f(n): return lambda m: n + m", "assert f(1)(2) == 3", True),
        (
            "def f(): raise ValueError('no')",
            "try:\n    f()\n    assert False\nexcept ValueError: pass\nassert True",
            True,
        ),
        ("def f(): raise ValueError('no')", "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'", True),
        ("class E(Exception): pass\ndef f(): raise E", "try:\n    f()\nexcept Exception:\n    assert True", True),
        ("import math\ndef f(x): return x", "assert math.isclose(f(1.0), 1.0)", True),
        ("LIMIT = 5", "assert LIMIT == 5", True),
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3", True),
        ("def set(x): return 1\ndef f(x): return x", "assert set(f([1, 1])) == {1}", True),
        ("def f(): return {1: (2, {3})}", "assert f() == {1: (2, {3})}", True),
        ("def f(): return (1, 2)", "assert f() == [1, 2]", False),
        ("def f(): return 1.0", "assert f() == 1", True),
        ("def f(): return None", "assert f() is None", True),
        ("def f(a, *, b=2): return a * b", "assert f(2, b=5) == 10", True),
        ("def f(x): return x", "for i in range(50):\n    assert f(i) == i", True),
        ("def f(x): return x", "for i in range(0):\n    assert f(i) == i", False),
        ("def f(x): return len(x)", "assert f('ä\\ud800') == 2", True),
        ("def f(n): return 10 ** n", "assert f(5000) == 10 ** 5000", True),
        ("if __name__ == '__main__':\n    raise SystemExit\ndef f(): return 1", "assert f() == 1", True),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\ndef f(): return P(1).a",
            "assert f() == 1",
            True,
        ),
        ("import json, numpy\ndef f(): return numpy.arange(3).sum()", "assert f() == 3", True),
        ("def f(): print('x' * 10**6); return 1", "assert f() == 1", True),
        ("def f(): return input()", "assert f() == ''", False),
    ],
)
def test_assertions_see_a_program_as_if_it_were_here(code: str, test: str, correct: bool) -> None:
    assert judged(code, asserts(test)).correct is correct


def test_setup_runs_before_the_program_and_before_the_assertions() -> None:
    asked = asserts("assert f(N) == N + 1", setup="N = 3\ndef up(x): return x + 1")
    assert judged("def f(x): return up(x)", asked).correct


def test_the_program_is_not_shown_the_tests() -> None:
    code = """
import gc, sys
def f(x):
    seen = [str(held) for held in gc.get_objects() if isinstance(held, (str, list, dict, tuple))]
    frame = sys._getframe()
    while frame:
        seen.append(str(frame.f_locals) + str(frame.f_globals))
        frame = frame.f_back
    return any("".join(("76543", "21")) in text for text in seen)
"""
    assert judged(code, asserts("assert f(1) == False", "assert 7654321 == 7654321"), timeout_s={"asserts": 60}).correct


@pytest.mark.parametrize(
    ("code", "pairs", "correct"),
    [
        ("print(input())", (("a", "a"), ("b", "b")), True),
        ("import sys\nprint(sys.stdin.read().upper())", (("a b\nc", "A B C"),), True),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", (("1 2\n3", "6"),), True),
        ("print(open(0).read())", (("a", "a"),), True),
        ("def main():\n    print(int(input()) + 1)\nif __name__ == '__main__':\n    main()", (("1", "2"),), True),
        ("import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\n"
         "def r(n): return n and r(n - 1) + 1\nthreading.Thread(target=lambda: print(r(20000))).start()", (("", "20000"),), True),
        ("print(input())\nexit()", (("a", "a"),), True),
        ("print(input())\nexit(0)", (("a", "a"),), True),
        ("print(input())\nexit(1)", (("a", "a"),), False),
        ("print('ä')", (("", "ä"),), True),
        ("import sys\nsys.stdout.write('5')", (("", "5"),), True),
        ("x = input()\nopen('x', 'w').write(x)\nprint(open('x').read())", (("a", "a"), ("b", "b")), True),
        ("print('x' * 10**6)", (("", "x" * 10**6),), True),
        ("import gc\nprint(gc.isenabled(), gc.get_threshold()[0] > 0)", (("", "True True"),), True),
        ("import atexit\natexit.register(lambda: print('bye'))", (("", "bye"),), True),
        ("print(len(input()))", (("y" * 10**6, str(10**6)),), True),
    ],
)  # fmt: skip
def test_readers(code: str, pairs: tuple[tuple[str, str], ...], correct: bool) -> None:
    assert judged(code, reader(*pairs)).correct is correct


def livecodebench(cases: list[tuple[str, str]], function: str | None = None) -> Problem:
    held = [
        {"input": given, "output": wanted, "testtype": "functional" if function else "stdin"} for given, wanted in cases
    ]
    metadata = json.dumps({"func_name": function} if function else {})
    return problem(public_test_cases=json.dumps(held), private_test_cases="[]", metadata=metadata)


@pytest.mark.parametrize(
    ("code", "asked", "correct"),
    [
        ("class Solution:\n    def f(self, xs, k): return [x + k for x in xs]", ([("[1, 2]\n3", "[4, 5]")], "f"), True),
        ("class Solution:\n    def f(self, xs, k): return tuple(x + k for x in xs)", ([("[1, 2]\n3", "[4, 5]")], "f"), True),
        ("class Solution:\n    def f(self, x: List[int]) -> int: return 1 / 0", ([("[]", "1")], "f"), False),
        ("class Solution:\n    def f(self, d): return d", ([('{"a": [1]}', '{"a": [1]}')], "f"), True),
        ("def f(x): return Counter(x)['a']", ([('"aab"', "2")], "f"), True),
        ("def g(x): return 1", ([("1", "1")], "f"), False),
        ("class Solution:\n  n = 0\n  def f(self, x):\n    self.n += 1\n    return self.n", ([("1", "1"), ("1", "2")], "f"), True),
        ("print(Decimal)", ([("", "x")],), False),
        ("from decimal import Decimal\nprint(1.50)", ([("", "1.5")],), True),
        ("print(1)\nprint()", ([("", "1")],), True),
        ("print(gcd(4, 6), sqrt(4))", ([("", "2 2")],), True),
    ],
)  # fmt: skip
def test_livecodebench(code: str, asked: tuple[Any, ...], correct: bool) -> None:
    assert judged(code, livecodebench(*asked)).correct is correct


def test_the_time_of_a_call_is_its_own() -> None:
    code = "import time\ndef f(x):\n    start = time.process_time()\n    while time.process_time() < start + 0.4: pass\n    return x"
    asked = livecodebench([(str(i), str(i)) for i in range(12)], "f")
    assert judged(code, asked, timeout_s={"livecodebench": 2.0}).kind == "correct"


def test_time_limits_go_by_kind_and_by_row() -> None:
    code = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 1.5: pass\nprint(1)"
    assert judged(code, reader(("", "1")), timeout_s={"stdin": 0.5, "check": 20.0}).kind == "timeout"
    assert judged(code, reader(("", "1"), time_limit_s=20.0), timeout_s={"stdin": 0.5}).kind == "correct"
    assert judged(code, reader(("", "1")), timeout_s={"stdin": 20.0, "check": 0.5}).kind == "correct"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"memory_mb": 100}, "print(len(bytearray(2**27)) and 1)"),
        ({"output_mb": 1}, "print('1' + ' ' * 2**21)"),
        ({"disk_mb": 1}, "print(open('x', 'wb').write(b'x' * 2**21) and 1)"),
        ({"open_files": 20}, "print(len([open('/dev/null') for _ in range(40)]) and 1)"),
        (
            {"processes": 4},
            "import threading, time\nfor _ in range(10): threading.Thread(target=time.sleep, args=(.5,)).start()\nprint(1)",
        ),
    ],
)
def test_each_limit_is_one(limits: dict[str, int], code: str) -> None:
    assert judged(code, reader(("", "1"))).correct
    assert not judged(code, reader(("", "1")), limits=Limits(**limits)).correct


def test_threads_may_judge_at_once() -> None:
    verifier = CodeVerifier(extract="whole", timeout_s=SLOW)
    verdicts: dict[int, bool] = {}

    def judge(index: int) -> None:
        code = f"def half(x): return x // 2 + {index % 2}"
        verdicts[index] = verifier(code, FOUR).correct

    threads = [threading.Thread(target=judge, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {index: index % 2 == 0 for index in range(6)}


def test_a_sandbox_that_fails_is_an_error_not_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = CodeVerifier(extract="whole")
    monkeypatch.setattr(run, "BOOT", "raise SystemExit('broken')")
    with pytest.raises(VerifierError, match=r"the sandbox ended: broken \(exit code 1\)"):
        verifier("def half(x): return x // 2", FOUR)


def test_a_run_without_its_secret_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = CodeVerifier(extract="whole")
    honest = run.BOOT.replace(
        ".main()\n", ".send = forged\nsys.modules['rlvr_lightning.verifiers.code.inside.harness'].main()\n"
    )
    forging = "import json\ndef forged(fd, message, *rest):\n" + (
        "    message = {'secret': 'guess'} if 'secret' in message else message\n"
        "    data = json.dumps(message).encode()\n    os.write(fd, len(data).to_bytes(8, 'little') + data)\n"
    )
    monkeypatch.setattr(run, "BOOT", honest.replace("for name, code", f"{forging}for name, code"))
    with pytest.raises(VerifierError, match="did not give the run's secret back"):
        verifier("def half(x): return x // 2", FOUR)


def test_a_named_sandbox_that_does_not_work_is_refused_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "failure", lambda name: None if name == "rlimits" else "no namespaces")
    with pytest.raises(
        HardwareError, match="verifier.sandbox=bubblewrap does not work here: bubblewrap: no namespaces"
    ):
        judged("", FOUR, sandbox="bubblewrap")
    assert choose.choose_sandbox("auto").strength == "rlimits"
    monkeypatch.setattr(choose, "failure", lambda _: "nothing works")
    with pytest.raises(
        HardwareError, match="bubblewrap: nothing works; landlock: nothing works; rlimits: nothing works"
    ):
        choose.choose_sandbox("auto")


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


def test_nothing_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that hangs is ended by the judge."""
    verifier = CodeVerifier(extract="whole", timeout_s={"asserts": 0.1})
    monkeypatch.setattr(run, "BOOT", "import time\ntime.sleep(1000)")
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(VerifierError, match="did not answer in time"):
        verifier("def half(x): return x // 2", FOUR)
    assert time.monotonic() - start < 30


def test_a_program_names_its_files_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder of the environment too, where that lies in /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for name, found in (("libraries", list(bubblewrap.libraries())), ("readable", list(bubblewrap.readable()))):
            monkeypatch.setattr(bubblewrap, name, lambda found=found: [*found, folder])
        name = Path(folder).name
        code = f"import os\nopen({name!r}, 'w').write('1')\nprint(open({name!r}).read(), os.path.isdir({folder!r}))"
        try:
            verifier = CodeVerifier(extract="whole", sandbox="bubblewrap")
        except HardwareError as error:
            pytest.skip(str(error))
        assert verifier(code, reader(("", "1 True"))).correct
