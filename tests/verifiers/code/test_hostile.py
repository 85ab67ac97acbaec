"""Programs that mean harm, in every sandbox that works here: a verdict in time, never a false reward, nothing left."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import HOSTILE, HOSTILE_READERS
from waiting import until

from rlvr_lightning.errors import VerifierError
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.code.verifier import CodeVerifier
from rlvr_lightning.verifiers.sandbox import choose, session
from rlvr_lightning.verifiers.sandbox.choose import KINDS, failure
from rlvr_lightning.verifiers.sandbox.folders import own_folder
from rlvr_lightning.verifiers.sandbox.limits import Limits
from rlvr_lightning.verifiers.sandbox.rlimits import Rlimits
from rlvr_lightning.verifiers.sandbox.users import uids_of_this_process

# The strongest with the fast tests, the others with the slow ones.
STRENGTHS = ["bubblewrap", *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name != "bubblewrap")]
CANARY = "canary_of_the_judge"
SECONDS = 1.0
ASSERTS = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0", "assert add([1], [2]) == [1, 2]"]
ADD = Problem("add", (), "", {"tests": {"type": "asserts", "setup": "", "asserts": ASSERTS}})
READER = Problem("reader", (), "", {"tests": {"type": "stdin", "cases": [{"input": "2 3\n", "output": "5\n"}]}})


def processes() -> set[int]:
    """Processes of this one's candidate users, and its own descendants."""
    found, parent_of = set(), {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = dict(
                    line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line
                )
            except OSError:
                continue
            parent_of[int(entry.name)] = int(status["PPid"])
            if int(status["Uid"].split()[0]) in uids_of_this_process():
                found.add(int(entry.name))
    open_ends = [os.getpid()]
    while open_ends:
        parent = open_ends.pop()
        children = {child for child, its in parent_of.items() if its == parent}
        found |= children
        open_ends += children
    return found


def files() -> set[Path]:
    """What lies where anybody may write and belongs to a candidate, or is named like one's folder."""
    found = set(own_folder().iterdir())
    for folder in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        for path in folder.iterdir():
            try:
                owner = path.lstat().st_uid
            except OSError:
                continue
            if owner in uids_of_this_process() or path.name.startswith("rlvr_left"):
                found.add(path)
    return found


@pytest.fixture(autouse=True)
def _works_here(request: pytest.FixtureRequest) -> None:
    """Found out when a test runs: what is collected must not depend on how busy the machine is."""
    held = getattr(request.node, "callspec", None)
    strength = None if held is None else held.params.get("strength")
    reason = None if strength is None else failure(strength)
    if reason is not None:
        pytest.skip(f"{strength} does not work here: {reason}")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    own_folder()
    before, opened = processes(), set(Path("/proc/self/fd").iterdir())
    yield
    assert processes() - before == set()
    assert files() == set()
    assert len(list(Path("/proc/self/fd").iterdir())) <= len(opened)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server on this machine."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


def judged(strength: str, code: str, problem: Problem, seconds: float = SECONDS) -> bool:
    limits = Limits(memory_mb=256, processes=16, output_mb=1, disk_mb=4)
    verifier = CodeVerifier(
        extract="whole", sandbox=strength, timeout_s={"asserts": seconds, "stdin": seconds}, limits=limits
    )
    start = time.monotonic()
    try:
        verdict = verifier(code, problem)
    except VerifierError:
        return False  # counted as an error: no reward
    finally:
        assert time.monotonic() - start < 3 * seconds + 60
    assert verdict.reward == float(verdict.correct)
    return verdict.correct


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_function(
    name: str, strength: str, port: int, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", CANARY)
    hostile = HOSTILE[name]
    code = hostile.code
    for mark, value in (
        ("port", port),
        ("home!r", repr(str(Path.home()))),
        ("names!r", repr({path.name for path in Path.home().iterdir()})),
        ("here!r", repr(__file__)),
        ("canary", CANARY),
    ):
        code = code.replace(f"{{{mark}}}", str(value))
    code = code.replace("{canary!r}", repr(CANARY)).replace("{{", "{").replace("}}", "}")
    right = strength in hostile.passes
    correct = judged(strength, code, ADD, 10.0 if right else SECONDS)
    assert correct is right or (correct is False and strength == "rlimits")


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", HOSTILE_READERS)
def test_a_hostile_reader(name: str, strength: str, nothing_left: None) -> None:
    hostile = HOSTILE_READERS[name]
    right = strength in hostile.passes
    for _ in range(2 if name == "reads_what_others_left" else 1):
        assert judged(strength, hostile.code, READER, 10.0 if right else SECONDS) is right


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) + len(HOSTILE_READERS) >= 60


@pytest.mark.parametrize("strength", STRENGTHS)
def test_what_is_right_stays_right_after_all_that(strength: str, nothing_left: None) -> None:
    assert judged(strength, "def add(a, b):\n    return a + b\n", ADD, 10.0)
    assert judged(strength, "print(sum(map(int, input().split())))", READER, 10.0)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_nothing_outlives_a_judge_that_is_killed(strength: str, nothing_left: None) -> None:
    """A judge ended by kill -9 in the middle of a program takes everything along."""
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[3])!r}]
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.code.verifier import CodeVerifier
from rlvr_lightning.verifiers.sandbox.rlimits import Rlimits
from rlvr_lightning.verifiers.sandbox.users import uids_of_this_process
ids = uids_of_this_process()
print(ids.start, ids.stop, flush=True)
CodeVerifier(extract="whole", sandbox={strength!r}, timeout_s={{"stdin": 60}})(
    "import os\\nif os.fork() == 0: os.setsid()\\nwhile True: pass", Problem("p", (), "", {READER.meta!r}))
"""
    judge = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert judge.stdout is not None
    ids = range(*map(int, judge.stdout.readline().split()))

    def of_the_judge() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and entry.stat().st_uid in ids:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    if os.geteuid() == 0:
        assert until(lambda: len(of_the_judge()) == 2, 60)
    judge.send_signal(signal.SIGKILL)
    judge.wait()
    judge.stdout.close()
    assert until(lambda: of_the_judge() == [], 10)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_strength_is_told(strength: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    choose._announce.cache_clear()
    judged(strength, "def add(a, b):\n    return a + b\n", ADD, 10.0)
    assert f"sandbox for candidate programs: {strength}" in caplog.text
    assert ("under resource limits alone" in caplog.text) is (strength == "rlimits")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives programs a user of their own")
def test_a_harness_that_cannot_be_talked_to_takes_its_programs_along(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon of a harness that stands still, as one does that a program managed to stop."""
    script = """
import os, time
uid = os.stat(".").st_uid
if os.fork() == 0:
    os.setsid()
    os.setresuid(uid, uid, uid)
    os.write(1, (2).to_bytes(8, "little") + b"up")
time.sleep(1000)
"""
    monkeypatch.setattr(session, "KILL_SECONDS", 0.2)
    others = processes()
    started = Rlimits().start(script, Limits())
    assert started.receive(20, 10) == b"up"
    before = processes() - others
    started.close()
    # Killed, it is the machine's first process that takes it away.
    until(lambda: not processes() & before, 10)
