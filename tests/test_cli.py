"""What a user types and what comes back: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training import SMALL

from rlvr_lightning.cli.completion import candidates
from rlvr_lightning.cli.main import main, reorder
from rlvr_lightning.config.checks import check_folder
from rlvr_lightning.config.compose import compose, explain
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed

FIT = ("fit", "conf=archer", "trainer.max_epochs=0")

MISTAKES = [
    (("ft",), "there is no verb ft; did you mean fit?"),
    (("fit", "conf=archr"), "there is no conf=archr; did you mean archer or archer_random or archer_lp_reg?"),
    ((*FIT, "partitioner=entropi"), "there is no partitioner=entropi; did you mean top_entropy or entropy_quantile?"),
    ((*FIT, "partitioner.quantil=0.9"), "there is no setting partitioner.quantil; did you mean partitioner.quantile"),
    ((*FIT, "quantile=0.9"), "there is no setting quantile; did you mean partitioner.quantile"),
    ((*FIT, "regularizer=[lp_rg]"), "there is no regularizer=lp_rg; did you mean lp_reg?"),
    (
        (*FIT, "regularizer=[lp_reg]", "+regularizer.lp_reg.treshold=0.1"),
        "there is no setting regularizer.lp_reg.treshold; did you mean threshold or threshold_kind?",
    ),
    ((*FIT, "partitioner.quantile=1.2"), "EntropyQuantile.quantile must be in (0, 1); got 1.2"),
    ((*FIT, "partitioner=single"), "constraint.clip_low is set for the parts knowledge, reasoning"),
    (
        (*FIT, "partitioner=single", "constraint=gspo", "correction=mis"),
        "correction MIS weighs single tokens, but GSPO has one ratio for a whole response: choose correction.level=sequence",
    ),
    (
        ("fit", "conf=opefo", "rollout.passes=2"),
        "OPEFO makes sense only on-policy, but 2 optimizer steps learn from each rollout phase",
    ),
    ((*FIT, "controller=target"), "controller.drives must be given: controller.drives=..."),
    (
        (*FIT, "controller=target", "controller.drives=constraint.clip_hi.reasoning"),
        "controller.drives=constraint.clip_hi.reasoning is no number of this run's components; did you mean",
    ),
    (
        (*FIT, "controller=target", "controller.drives=constraint.clip_high.reasoning", "controller.most=-1"),
        "Target.least must be below most=-1",
    ),
    ((*FIT, "trainer.precision=bf16-true"), "trainer.precision must be 32-true or bf16-mixed; got bf16-true"),
    ((*FIT, "trainer.precision=16-mixed"), "trainer.precision=16-mixed is refused: float16 needs its loss scaled"),
    ((*FIT, "engine=transformers", "engine.dtype=float8"), "engine.dtype must be auto, float32, bfloat16, float16"),
    ((*FIT, "model.gradient_checkpointing=some"), "model.gradient_checkpointing must be none, full, or n"),
    ((*FIT, "optim.name=sgd"), "optim.name must be one of adamw, adamw_8bit, adamw_paged; got sgd"),
    ((*FIT, "optim.schedule=step"), "optim.schedule must be one of constant, linear, cosine; got step"),
    ((*FIT, "optim.betas=[0.9,1.0]"), "optim.betas must be two numbers in [0, 1); got [0.9, 1.0]"),
    ((*FIT, "trainer.devices=0"), "trainer.devices must be at least 1; got 0"),
    ((*FIT, "trainer.devices=-1"), "trainer.devices must be at least 1; got -1"),
    (
        (*FIT, "trainer.accelerator=abc"),
        "trainer.accelerator=abc, trainer.devices=1 cannot be had here: You selected an",
    ),
    ((*FIT, "output_dir=/etc/hostname"), "output_dir=/etc/hostname cannot be a folder: /etc/hostname is a file"),
    ((*FIT, "output_dir=/etc/hostname/run"), "cannot be a folder: /etc/hostname is a file"),
    (
        (*FIT, "task=jsonl", "task.path=x.jsonl", "task.num_held_out=4"),
        "there is no setting task.num_held_out with the task chosen, only with another one",
    ),
    ((*FIT, "trainer.max_epochs=many"), "trainer.max_epochs must be a whole number; got 'many'"),
    ((*FIT, "optim.lr=-1"), "optim.lr must be at least 0; got -1"),
    ((*FIT, "seed=-1"), "seed must be a whole number from 0; got -1"),
    ((*FIT, "rollout.group_size=1"), "rollout.group_size must be at least 2 for this advantage; got 1"),
    ((*FIT, "rollout.top_p=0.9"), "rollout.top_p must be 1: what is scored is the whole distribution; got 0.9"),
    ((*FIT, "rollout.temperature=0"), "rollout.temperature must be above 0; got 0"),
    ((*FIT, "rollout.prompts_per_step=7"), "rollout.prompts_per_step=7 must divide rollout.prompts_per_epoch=32"),
    ((*FIT, "task=jsonl"), "task.path must be given: task.path=..."),
    ((*FIT, "task=jsonl", "task.path=nowhere.jsonl"), "task.path=nowhere.jsonl does not exist"),
    (
        (*FIT, "model.path=/nowhere"),
        "model.path=/nowhere does not exist: give a Hugging Face folder, or a bundled model (tiny, sparks, countdown)",
    ),
    ((*FIT, "model.dtype=bfloat16"), "there is no model.dtype any more"),
    ((*FIT, "+model.dtype=float32"), "there is no model.dtype any more"),
    (("fit", "resume=/nowhere"), "resume=/nowhere holds no run"),
    (("export",), "export needs the run to export: resume=OUTPUT_DIR"),
    (("fit", "conf=lp_reg_qwen3_14b", "hardware.gpus=999"), "lp_reg_qwen3_14b needs 999 GPUs"),
    (
        ("fit", "conf=archer_code_1_5b", "verifier=math"),
        "archer_code_1_5b is judged by its code, and MathVerifier judges answer: choose a verifier that judges code",
    ),
    ((*FIT, "judged=code"), "archer is judged by its code, and ExactVerifier judges answer"),
    ((*FIT, "judged=taste"), "judged must be answer or code; got 'taste'"),
    (("completion", "tcsh"), "completion needs a shell: bash, zsh, fish"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[-60:] if isinstance(value, tuple) else ""
)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(vllm_installed(), reason="vllm is installed here")
def test_vllm_asked_for_and_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main((*FIT, "engine=vllm")) == 2
    assert "vllm is not installed: pip install 'rlvr-lightning[vllm]'" in capsys.readouterr().err


def test_a_model_folder_without_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main((*FIT, f"model.path={tmp_path}")) == 2
    assert f"model.path={tmp_path} has no usable tokenizer" in capsys.readouterr().err


def test_an_engine_of_ones_own_need_not_have_every_setting(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "mine.yaml").write_text("_target_: outside.Engine\n")
    assert main(("plan", "--config-dir", str(tmp_path), "engine=mine")) == 0


def test_weights_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(ModelSource().folder), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"garbage")
    assert main((*FIT, f"model.path={tmp_path / 'model'}", f"output_dir={tmp_path / 'run'}")) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'model' / 'model.safetensors'} is no readable safetensors file: ")


def test_adapters_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main((*FIT, "peft=lora", "peft.config.r=0", f"output_dir={tmp_path / 'run'}")) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: peft.config cannot be used: `r` should be a positive integer")


def test_a_folder_closed_to_the_user_and_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # every folder is open to root
        monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK and Path(path).exists())
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=f"output_dir={tmp_path}/run cannot be written: {tmp_path} is closed to you"):
        check_folder(tmp_path / "run")


def test_a_new_run_does_not_mix_with_an_older_ones_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints" / "step_00000016").mkdir(parents=True)
    assert main((*FIT, f"output_dir={tmp_path}")) == 2
    message = (
        f"output_dir={tmp_path} holds a run already: go on with it by resume={tmp_path}, or choose another output_dir"
    )
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_home_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main((*FIT, *SMALL, "trainer.max_epochs=0", "rollout.prompts_per_step=8", "output_dir=~/run")) == 0
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert not (tmp_path / "~").exists()


def test_ctrl_c_before_anything_is_built(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rlvr_lightning.cli.main._dispatch", lambda arguments: signal.raise_signal(signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(("fit",)) == 130
    signal.signal(signal.SIGINT, previous)
    assert capsys.readouterr().err == "interrupted\n"


def test_a_disk_that_takes_no_more_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(arguments: list[str]) -> int:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)
        return 0

    monkeypatch.setattr("rlvr_lightning.cli.main._dispatch", full)
    assert main(("fit",)) == 1
    assert capsys.readouterr().err == "error: the output folder cannot be written: No space left on device\n"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b'{"format": 1, "step": 1', b'{"format": 2}', b"[]"])
def test_a_corrupt_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    from omegaconf import OmegaConf

    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000001" / "state.json").write_bytes(content)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(compose(["conf=archer", "engine=transformers"])))
    assert main(("fit", f"resume={tmp_path}")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [f"error: there is no complete checkpoint in {tmp_path / 'checkpoints'}"]
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert main(("fit", f"resume={tmp_path}")) == 2
    assert "last.ckpt was written by an older version" in capsys.readouterr().err
    assert main(("fit", f"resume={tmp_path}", "partitioner=single")) == 2
    assert "a resumed run keeps its components; partitioner cannot be set" in capsys.readouterr().err


def test_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("--help",)) == 0
    shown = capsys.readouterr().out
    for word in ("fit", "export", "archer_lp_reg", "entropy_quantile", "--config-dir", "seed=0,1,2"):
        assert word in shown


def test_cfg_job_shows_the_composed_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(("fit", "conf=archer", "--cfg", "job", "partitioner.quantile=0.9")) == 0
    shown = capfd.readouterr().out
    assert "quantile: 0.9" in shown
    assert "name: archer" in shown


def test_options_come_first() -> None:
    assert reorder(["seed=1", "--config-dir", "x", "-m", "a=b"]) == ["--config-dir", "x", "-m", "seed=1", "a=b"]


def test_completion_offers_verbs_members_and_settings() -> None:
    assert candidates(["va"]) == ["validate"]
    assert candidates(["fit", "conf=archer_l"]) == ["conf=archer_lp_reg"]
    assert candidates(["fit", "partitioner=e"]) == ["partitioner=entropy_quantile"]
    assert candidates(["fit", "conf=archer", "partitioner.q"]) == ["partitioner.quantile="]
    assert candidates(["fit", "regularizer.lp_reg.q"]) == []
    assert candidates(["fit", "conf=lp_reg", "regularizer.lp_reg.q"]) == ["regularizer.lp_reg.quantile="]


def test_compose_from_python_says_the_same() -> None:
    assert compose(["conf=archer_lp_reg", "regularizer.lp_reg.quantile=0.02"]).regularizer.lp_reg.quantile == 0.02
    with pytest.raises(ConfigError, match="there is no conf=nobody; "):
        compose(["conf=nobody"])


def test_importing_the_package_is_cheap_and_leaves_heavy_parts_out() -> None:
    code = (
        "import sys, rlvr_lightning; print(sorted({'torch', 'lightning', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    import rlvr_lightning

    for name in rlvr_lightning.__all__:
        assert getattr(rlvr_lightning, name) is not None, name
    assert re.fullmatch(r"\d+\.\d+\.\d+", rlvr_lightning.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        _ = rlvr_lightning.nobody


def test_an_error_that_stands_in_its_own_chain_is_explained_all_the_same() -> None:
    error, other = ValueError("one"), ValueError("two")
    error.__context__, other.__context__ = other, error
    assert str(explain(error)) == "one"
