"""How programs are run: limits, threads, folders, and a sandbox that fails or is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import pytest
from asking import FOUR, SLOW, judged, reader

from rlvr_lightning.errors import HardwareError, VerifierError
from rlvr_lightning.verifiers.code import run
from rlvr_lightning.verifiers.code.verifier import CodeVerifier
from rlvr_lightning.verifiers.pool import VerifierPool
from rlvr_lightning.verifiers.sandbox import bubblewrap, choose
from rlvr_lightning.verifiers.sandbox.folders import PREFIX, remove_abandoned
from rlvr_lightning.verifiers.sandbox.limits import Limits


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
