"""`plan`, and what `fit` refuses by it: nothing is loaded, nothing is written, and one line says what would fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_lightning.cli.main import main
from rlvr_lightning.cli.plan import plan_run, verdict
from rlvr_lightning.config import planned
from rlvr_lightning.config.build import build_data, build_module
from rlvr_lightning.config.components import component, model_source
from rlvr_lightning.config.compose import compose
from rlvr_lightning.models.shapes import packaged
from rlvr_lightning.models.source import bundled_model
from rlvr_lightning.training.forecast.setup import GIB

# Ends with what the process had loaded and its peak [KiB].
TOLD = """
import sys
from rlvr_lightning.cli.main import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print("left", code, "vllm" in sys.modules, peak)
"""


def test_plan_of_32b_needs_no_file_no_gpu_no_vllm_and_loads_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOLD, "plan", "conf=lp_reg_qwen2_5_32b"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    *shown, last = done.stdout.strip().splitlines()
    word, code, vllm, peak = last.split()
    assert (word, code, vllm) == ("left", "0", "False")
    assert int(peak) < 2 * 2**20  # the model alone is 122 GiB
    assert list(tmp_path.iterdir()) == []
    text = "\n".join(shown)
    for part in ("32.76B parameters", "optimizer state (adamw)", "each rank at once", "checkpoints", "PFLOP", "fits: "):
        assert part in text, part


def test_plan_says_what_does_not_fit_and_what_would() -> None:
    cfg = compose(["conf=archer_math_1_5b", "trainer.devices=1", "strategy=single", "hardware.gpu_memory_gb=52"])
    first, *ways = verdict(plan_run(cfg)).splitlines()
    assert first.startswith("does not fit: ")
    assert first.endswith("GiB needed on each GPU, 52.0 there")
    assert len(ways) == 3
    for way in ways:
        overrides = way.partition("fits with ")[2].partition(":")[0].split()
        smaller = plan_run(
            compose(
                [
                    "conf=archer_math_1_5b",
                    "trainer.devices=1",
                    "strategy=single",
                    "hardware.gpu_memory_gb=52",
                    *overrides,
                ]
            )
        )
        assert smaller.fits, way
        assert f"{smaller.device_total / GIB:.1f} GiB" in way


@pytest.fixture
def small_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_host_memory", lambda accelerator: 20.0 * GIB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder before its weights are there, with the bundled tokenizer."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(packaged()["Qwen/Qwen2.5-1.5B"]))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled_model() / name, made)
    return made


FIT = ("fit", "conf=archer", "engine=transformers", "trainer.accelerator=cpu")


@pytest.mark.usefixtures("small_host")
def test_fit_refuses_what_cannot_fit_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main((*FIT, f"model.path={folder}")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: archer needs ")
    assert "GiB of this host, and 20.0 are there: it would fit with " in line
    for setting in ("model.gradient_checkpointing=full", "trainer.micro_batch_tokens=", "peft=lora"):
        assert setting in line
    assert line.endswith("hardware.check=false tries it all the same")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.usefixtures("small_host")
def test_fit_goes_on_all_the_same_when_told_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main((*FIT, f"model.path={folder}", "hardware.check=false")) == 2
    # The folder holds no weights, which is found out next.
    assert f"model.path={folder} " in capsys.readouterr().err


def test_prompts_count_as_long_as_they_are_before_a_run_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 responses of 48 tokens: after prompts of 12, as the task has them, they fit; after 20,000 they would not.
    few = ("rollout.prompts_per_epoch=2", "rollout.prompts_per_step=2", "rollout.group_size=2", "engine.batch_size=4")
    cfg = compose([*FIT[1:], *few, f"model.path={folder}", "rollout.max_prompt_tokens=20000", f"output_dir={tmp_path}"])
    longest = plan_run(cfg)
    monkeypatch.setattr(planned, "_host_memory", lambda accelerator: longest.host_total / 2)
    assert plan_run(cfg).certainly_too_large
    source = model_source(cfg)
    data, module = build_data(cfg, source, component(cfg, "engine")), build_module(cfg, source)
    planned.check_memory(cfg, module, data)


def test_a_forecast_within_its_tolerance_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    cfg = compose([*FIT[1:], f"model.path={folder}"])
    needed = plan_run(cfg).host_total
    for there, refused in ((needed / 1.10, False), (needed / 1.20, True)):
        monkeypatch.setattr(planned, "_host_memory", lambda accelerator, there=there: there)
        outcome = plan_run(cfg)
        assert not outcome.fits
        assert bool(outcome.certainly_too_large) == refused


def test_plan_of_a_model_nowhere_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("plan", "conf=grpo", "model.path=nobody/nothing")) == 2
    assert "model.path=nobody/nothing is not on this machine" in capsys.readouterr().err
