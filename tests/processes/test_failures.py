"""One failure: what is shown, in real processes of two gloo ranks; nothing waits for a rank that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from training import SMALL

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "faults"
# What the whole command may take: a start and two epochs on a busy machine, then a minute until all ranks have ended.
LIMIT = 180
# For a process to get from what it said to what it does next [seconds].
SOON = 2.0
YAMLS = {
    "engine/faulty": "_target_: faults.FaultyEngine\nfault: raise\nrank: 1\nphase: 2\n",
    "task/faulty": "_target_: faults.FaultyTask\nnum_train: 64\nnum_held_out: 4\n",
    "regularizer/faulty": "# @package regularizer.faulty\n_target_: faults.FaultyTerm\nrank: 1\n",
}
ENGINE = "RuntimeError: the engine is on fire"
KILLED = "the process was ended by SIGKILL, which is also what the system does when memory is out, without a word"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RLVR_FIRST_RANK")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(HERE), str(Path.cwd()), kept.get("PYTHONPATH", "")])}


def settings(tmp_path: Path, *overrides: str) -> list[str]:
    for name, content in YAMLS.items():
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return [
        "fit",
        "--config-dir",
        str(tmp_path / "conf"),
        *SMALL,
        "trainer.max_epochs=20",
        "trainer.val_every_n_epochs=1",
        "strategy=ddp",
        "trainer.devices=2",
        f"output_dir={tmp_path / 'run'}",
        *overrides,
    ]


def alive(tmp_path: Path) -> list[str]:
    """Processes that still work for the run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:  # it has just ended
            continue
        if str(tmp_path).encode() in words:
            found.append(words.decode().replace("\0", " "))
    return found


def failed(tmp_path: Path, *overrides: str, launcher: tuple[str, ...] = ("-m", "rlvr_lightning")) -> tuple[int, str]:
    """Run it, see that nothing of it is left, and return exit code and standard error."""
    command = [sys.executable, *launcher, *settings(tmp_path, *overrides)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False)
    # The command itself may be what was killed: the others have a minute.
    for _ in range(60):
        if not alive(tmp_path):
            break
        time.sleep(1)
    assert alive(tmp_path) == []
    return done.returncode, done.stderr


def told_first_and_once(stderr: str, rank: int, message: str) -> None:
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert lines[0].startswith(f"error on rank {rank} ("), stderr
    assert lines[0].endswith(f"): {message}"), stderr
    assert stderr.count("error on rank") == 1, stderr


CASES = [
    (("engine=faulty",), 1, ENGINE),
    (("engine=faulty", "engine.rank=0"), 0, ENGINE),
    (("engine=faulty", "strategy=fsdp"), 1, ENGINE),
    (("engine=faulty", "engine.fault=kill"), 1, KILLED),
    (("engine=faulty", "engine.fault=exit"), 1, "SystemExit: 7"),
    (("engine=faulty", "engine.fault=build"), 1, "engine: the engine cannot be built"),
    (("task=faulty",), 1, "train.jsonl:7: this machine's disk has another file"),
    (("regularizer=[faulty]",), 1, "RuntimeError: gradients are on fire"),
]


@pytest.mark.parametrize(("overrides", "rank", "message"), CASES, ids=lambda value: str(value)[:50])
def test_the_first_error_is_shown_and_all_end(
    overrides: tuple[str, ...], rank: int, message: str, tmp_path: Path
) -> None:
    code, stderr = failed(tmp_path, *overrides)
    assert code == 1, stderr
    told_first_and_once(stderr, rank, message)
    kept = tmp_path / "run" / "failure.txt"
    # An error before the first file of a run leaves none.
    if (tmp_path / "run").exists():
        assert kept.read_text().splitlines()[1] == stderr.splitlines()[0]
    is_users = "Error:" not in message and "Exit:" not in message
    assert ("Traceback" in stderr) == (not is_users)


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    code, stderr = failed(tmp_path, "engine=faulty", "engine.fault=disk", "engine.rank=0")
    assert code == 1, stderr
    assert stderr.startswith("error on rank 0 (")
    assert "File too large" in stderr.splitlines()[0], stderr
    assert "failure.txt cannot be written" in stderr
    assert stderr.count("error on rank") == 1


def test_the_command_itself_is_killed(tmp_path: Path) -> None:
    code, stderr = failed(tmp_path, "engine=faulty", "engine.fault=kill", "engine.rank=0")
    assert code == -signal.SIGKILL
    told_first_and_once(stderr, 0, "the process died without a word")


@pytest.mark.parametrize("fault", ["raise", "kill", "build"])
def test_under_torchrun(fault: str, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "rlvr_lightning")
    code, stderr = failed(tmp_path, "engine=faulty", f"engine.fault={fault}", launcher=launcher)
    assert code == 1, stderr
    ours = [line for line in stderr.splitlines() if line.startswith("error on rank")]
    assert len(ours) == 1, stderr
    assert ours[0].startswith("error on rank 1 (")
    message = {
        "raise": ENGINE,
        "kill": "the process died without a word",
        "build": "engine: the engine cannot be built",
    }
    assert ours[0].endswith(message[fault])
    # torchrun has its own report; ours comes before it.
    assert stderr.index(ours[0]) < stderr.index("FAILED")


def test_a_mistake_of_all_ranks_is_told_once(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "rlvr_lightning")
    code, stderr = failed(tmp_path, "rollout.group_size=1", launcher=launcher)
    assert code == 1
    assert stderr.count("rollout.group_size must be at least 2") == 1
    assert not (tmp_path / "run").exists()
    code, stderr = failed(tmp_path, "rollout.group_size=1")
    assert (code, stderr) == (2, "error: rollout.group_size must be at least 2 for this advantage; got 1\n")


def test_what_was_saved_before_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, stderr = failed(tmp_path, "engine=faulty", "engine.fault=kill", "engine.phase=4")
    assert code == 1, stderr
    again = ["fit", f"resume={folder}", "engine.fault=none", "trainer.max_epochs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "rlvr_lightning", *again],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "checkpoints" / "step_00000002").is_dir()
    assert not (folder / "failure.txt").exists()


def interrupted(tmp_path: Path, *overrides: str, at: tuple[str, ...] = ()) -> str:
    """Run it, press Ctrl-C for all its processes whenever the next of some words is on the screen, and return what was."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvr_lightning", *settings(tmp_path, *overrides)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Started in the background of a shell, the tests themselves may ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    bound = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
    bound.start()
    assert process.stdout is not None
    seen, awaited = "", list(at)
    for line in process.stdout:
        seen += line
        if awaited and awaited[0] in line:
            awaited.pop(0)
            time.sleep(SOON)
            os.killpg(process.pid, signal.SIGINT)
    code = process.wait(LIMIT)
    bound.cancel()
    assert code == 130, seen
    assert "error on rank" not in seen
    assert not (tmp_path / "run" / "failure.txt").exists()
    for _ in range(60):
        if not alive(tmp_path):
            break
        time.sleep(1)
    assert alive(tmp_path) == []
    return seen


def saved(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))


def test_ctrl_c_on_all_ranks_is_no_failure(tmp_path: Path) -> None:
    seen = interrupted(tmp_path, at=("epoch 2/",))
    assert f"interrupted; go on with: fit resume={tmp_path / 'run'}" in seen


def test_ctrl_c_that_one_rank_hears_while_it_samples_stops_all_and_goes_on(tmp_path: Path) -> None:
    # Before the third phase is drawn: the held-out problems came first, and after the first epoch again.
    interrupted(tmp_path, "engine=faulty", "engine.fault=interrupt", "engine.rank=1", "engine.phase=3")
    assert saved(tmp_path) == ["step_00000001"]
    resume = ("fit", "--config-dir", str(tmp_path / "conf"), f"resume={tmp_path / 'run'}", "trainer.max_epochs=2")
    again = [sys.executable, "-m", "rlvr_lightning", *resume, "engine=transformers"]
    subprocess.run(again, env=environment(), timeout=LIMIT, check=True)
    assert "step_00000002" in saved(tmp_path)


def test_ctrl_c_twice_ends_ranks_that_wait_for_each_other(tmp_path: Path) -> None:
    # Rank 1 never comes back from sampling, and rank 0 waits for it in a collective.
    faulty = ("engine=faulty", "engine.fault=hang", "engine.rank=1", "engine.phase=3")
    interrupted(tmp_path, *faulty, at=("held-out after epoch 1", "press it again"))
    assert saved(tmp_path) == ["step_00000001"]
