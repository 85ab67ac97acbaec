"""The first rank, which looks after the servers, is killed while they draw: one line, nothing left running, and a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training import SMALL
from waiting import until

from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_installed(), reason="vllm is not installed: nox -s vllm installs it"),
]
HERE = Path(__file__).parent
# A start of vLLM and two phases on a busy machine; then a server has ten seconds to end by itself.
LIMIT, ENDING = 240, 40
ENGINE = (
    "_target_: dying.DyingRank\nrank: 0\ndraw: 2\nmax_num_seqs: 4\nlog_folder: ${output_dir}/servers\nstart_s: 200.0\n"
)


def ran(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """A command's exit code and standard error; all that it starts has this test's folder in its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RLVR_FIRST_RANK")}
    path = os.pathsep.join([str(HERE), str(Path.cwd()), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "rlvr_lightning", "fit", "--config-dir", str(tmp_path / "conf"), *arguments],
        env={**environment, "PYTHONPATH": path, "STARTED_BY_TEST": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return done.returncode, done.stderr


def alive(tmp_path: Path) -> list[str]:
    """What still runs of it: ranks, servers, and what they have started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp_path).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has just ended
            continue
    return found


def test_a_rank_is_killed_while_servers_draw(tmp_path: Path) -> None:
    (tmp_path / "conf" / "engine").mkdir(parents=True)
    (tmp_path / "conf" / "engine" / "dying.yaml").write_text(ENGINE)
    folder, mine = tmp_path / "run", [item for item in SMALL if not item.startswith("engine=")]
    two = ("strategy=ddp", "trainer.devices=2", "trainer.save_every_n_steps=1", "trainer.val_every_n_epochs=20")
    code, said = ran(tmp_path, *mine, *two, "engine=dying", f"output_dir={folder}")
    assert until(lambda: alive(tmp_path) == [], ENDING)
    assert (folder / "servers" / "server_0.log").exists()
    errors = [line for line in said.splitlines() if "error" in line]
    assert (code, len(errors)) == (-signal.SIGKILL, 1), said
    assert errors[0].startswith("error on rank 0 (")
    assert errors[0].endswith("): the process died without a word")
    assert "Traceback" not in said
    # The step before is whole: the run goes on from it, with whatever engine.
    assert [path.name for path in (folder / "checkpoints").glob("step_*")] == ["step_00000001"]
    code, said = ran(tmp_path, f"resume={folder}", "engine=transformers")
    assert code == 0, said
    assert (folder / "checkpoints" / "step_00000002").is_dir()
