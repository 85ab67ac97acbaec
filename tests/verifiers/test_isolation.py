from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from rlvr_lightning.errors import VerifierError, VerifierTimeoutError
from rlvr_lightning.verifiers.isolation import IsolatedWorker

WORKER = """
import json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
print("{}", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "sleep" in request:
        time.sleep(request["sleep"])
    if "power" in request:  # one call into C, which no signal handler of Python's interrupts
        9 ** request["power"]
    if "exit" in request:
        os._exit(request["exit"])
    try:
        size = len(bytearray(request["bytes"]) if "bytes" in request else b"")
    except MemoryError:
        print(json.dumps({"error": "MemoryError: "}), flush=True)
        continue
    print(json.dumps({"echo": request["value"], "size": size, "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "echo_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "echo_worker"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("hang", [{"sleep": 60}, {"power": 10**9}])
def test_hung_worker_is_killed_and_replaced(module: str, hang: dict[str, int]) -> None:
    worker = IsolatedWorker(module, 1.0)
    first = worker.ask({"value": 1})["pid"]
    with pytest.raises(VerifierTimeoutError, match="no verdict within 1 s"):
        worker.ask({"value": 2, **hang})
    assert not alive(first)
    answer = worker.ask({"value": 3})
    assert answer["echo"] == 3
    assert answer["pid"] != first
    worker.close()


def test_dead_worker_is_an_error_and_replaced(module: str) -> None:
    worker = IsolatedWorker(module, 5.0)
    with pytest.raises(VerifierError, match=r"the process of echo_worker died \(exit code 7\)"):
        worker.ask({"value": 1, "exit": 7})
    assert worker.ask({"value": 2})["echo"] == 2
    worker.close()


def test_memory_is_bounded(module: str) -> None:
    worker = IsolatedWorker(module, 5.0, memory_bytes=2**28)
    assert worker.ask({"value": 1, "bytes": 2**20})["size"] == 2**20
    with pytest.raises(VerifierError, match="MemoryError"):
        worker.ask({"value": 1, "bytes": 2**29})
    assert worker.ask({"value": 2})["echo"] == 2
    worker.close()


def test_interrupted_request_leaves_no_answer_behind(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = IsolatedWorker(module, 5.0)
    worker.ask({"value": 1})
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_read_line", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            worker.ask({"value": 2})
    assert worker.ask({"value": 3})["echo"] == 3
    worker.close()


def test_missing_module_is_an_error() -> None:
    with pytest.raises(VerifierError, match="the process of no_such_module died"):
        IsolatedWorker("no_such_module", 1.0).ask({})


def test_long_requests_and_threads(module: str) -> None:
    worker, answers = IsolatedWorker(module, 10.0), dict[int, str]()
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: worker.ask({"value": f"{i}" * 200_000})["echo"]}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"{i}" * 200_000 for i in range(8)}
    worker.close()


def test_close_ends_the_process(module: str) -> None:
    worker = IsolatedWorker(module, 5.0)
    pid = worker.ask({"value": 1})["pid"]
    worker.close()
    worker.close()
    assert not alive(pid)
    assert worker.pid is None


def test_nothing_is_left_at_interpreter_exit(module: str, tmp_path: Path) -> None:
    script = f"""
        from rlvr_lightning.verifiers.isolation import IsolatedWorker
        worker = IsolatedWorker({module!r}, 5.0)
        print(worker.ask({{"value": 1}})["pid"])
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
    )
    assert done.stderr == ""
    assert not alive(int(done.stdout))
