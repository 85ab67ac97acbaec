"""Two real gloo processes do what one does on the same global batch; signals and installs in real processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import SMALL, recorded, widest_difference

pytestmark = pytest.mark.slow

COMMON = (
    *SMALL,
    "conf=archer_lp_reg",
    "rollout.prompts_per_step=4",
    "regularizer.lp_reg.quantile=0.2",
    "trainer.micro_batch_size=3",
)


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlvr_lightning", "fit", *COMMON, *overrides]


def losses(folder: Path) -> dict[str, list[float]]:
    with (folder / "logs" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    names = ("policy/loss/surrogate", "policy/loss/kl", "policy/loss/lp_reg", "policy/grad_norm", "reward/mean")
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(command(f"output_dir={folder}"), check=True, timeout=300)
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_one_process(strategy: str, alone: Path, tmp_path: Path) -> None:
    arguments = (f"strategy={strategy}", "trainer.devices=2", f"output_dir={tmp_path}")
    subprocess.run(command(*arguments), check=True, timeout=300)
    one, two = losses(alone), losses(tmp_path)
    for name, values in one.items():
        assert len(values) == 2
        assert two[name][0] == pytest.approx(values[0], rel=2e-5, abs=2e-8), name
    # Then Adam divides rounding by small gradients, and a token may fall on the other side of a threshold.
    assert two["reward/mean"] == one["reward/mean"]
    assert two["policy/loss/surrogate"][1] == pytest.approx(one["policy/loss/surrogate"][1], rel=2e-3, abs=2e-7)
    assert one["policy/loss/lp_reg"][0] > 0
    assert widest_difference(alone, tmp_path) < 2e-4
    again = (f"resume={tmp_path}", "trainer.max_epochs=3")
    subprocess.run([sys.executable, "-m", "rlvr_lightning", "fit", *again], check=True, timeout=300)
    assert len(recorded(tmp_path, 4)) > 0


def test_two_ranks_with_padded_rows_are_one_process_with_packed_ones(alone: Path, tmp_path: Path) -> None:
    cut = ("rollout.packing=false", "trainer.micro_batch_size=null", "trainer.micro_batch_tokens=200")
    arguments = ("strategy=ddp", "trainer.devices=2", *cut, f"output_dir={tmp_path}")
    subprocess.run(command(*arguments), check=True, timeout=300)
    one, two = losses(alone), losses(tmp_path)
    for name, values in one.items():
        assert two[name][0] == pytest.approx(values[0], rel=1e-3, abs=1e-6), name
    assert widest_difference(alone, tmp_path) < 2e-4


def interrupted(folder: Path, epochs: int, delay: float) -> str:
    """Start a run, press Ctrl-C `delay` seconds after its second epoch, and wait."""
    arguments = command(f"output_dir={folder}", f"trainer.max_epochs={epochs}")
    # Started in the background of a shell, the tests themselves may ignore SIGINT, and children inherit that.
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "epoch 2/" in line:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            break
    seen += process.stdout.read()
    assert process.wait(120) == 130, seen
    return seen


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.3, 0.45])
def test_ctrl_c_leaves_a_checkpoint_that_resumes_exactly(delay: float, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seen = interrupted(broken, 40, delay)
    assert f"interrupted; go on with: fit resume={broken}" in seen
    assert "Traceback" not in seen
    epochs = 5
    subprocess.run(command(f"output_dir={whole}", f"trainer.max_epochs={epochs}"), check=True, timeout=300)
    resume = [sys.executable, "-m", "rlvr_lightning", "fit", f"resume={broken}", f"trainer.max_epochs={epochs}"]
    subprocess.run([*resume], check=True, timeout=300)
    assert widest_difference(whole, broken) == 0


def test_a_wheel_in_an_empty_folder_brings_its_configuration(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(root)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 4e6
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, timeout=300)
    code = "import rlvr_lightning, sys; from rlvr_lightning.cli.main import main; sys.stdout.write(rlvr_lightning.__file__ + '\\n');"
    code += f"sys.exit(main(['fit', *{list(COMMON)!r}, 'trainer.max_epochs=1']))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith(str(site))
    assert len(list(empty.glob("outputs/*/checkpoints/step_00000002/state.json"))) == 1
