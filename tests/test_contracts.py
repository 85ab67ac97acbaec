"""Every yaml of every group composes, builds and says where its numbers come from; the default stays small."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from lightning.pytorch.accelerators import CPUAccelerator
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.callbacks.table import MetricsTable
from rlvr_lightning.config.build import build_module
from rlvr_lightning.config.checks import check_judge
from rlvr_lightning.config.components import model_source
from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.config.derived import DerivedNumbers
from rlvr_lightning.config.trainer import build_trainer, check_hardware
from rlvr_lightning.errors import ConfigError, HardwareError
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed
from rlvr_lightning.types import Problem, Verdict

COMPONENTS = (
    "advantage",
    "aggregator",
    "constraint",
    "controller",
    "correction",
    "engine",
    "partitioner",
    "regularizer",
    "shaping",
    "task",
    "verifier",
    "weighting",
)
# Of which there may be several, each under its name.
SEVERAL = ("regularizer", "weighting")
REWARDS = Path(__file__).parent / "verifiers" / "rewards.py:score"
FULL_SIZE = ("archer_code_1_5b", "archer_math_1_5b", "lp_reg_qwen3_14b", "lp_reg_qwen2_5_32b")
TINY = tuple(sorted({file.stem for file in (config_dir() / "experiment").glob("*.yaml")} - set(FULL_SIZE)))
# algorithms by their papers' numbers, where a setting of the yaml holds one
NUMBERS: dict[str, dict[str, Any]] = {
    "advantage/group_relative": {"normalize": True, "epsilon": 1e-6},
    "advantage/dr_grpo": {"normalize": False},
    "constraint/clip_kl": {"clip_low": 0.2, "clip_high": 0.2},
    "constraint/clip_higher": {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0},
    "constraint/capped_ratio": {"max_ratio": 10.0},
    "constraint/gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "constraint/gmpo": {"clip_low": 0.4, "clip_high": 0.4},
    "constraint/cispo": {"clip_low": 1.0, "clip_high": 4.0},
    "constraint/sapo": {"tau_pos": 1.0, "tau_neg": 1.05},
    "constraint/clip_cov": {"share": 2e-4, "lowest": 1.0, "highest": 5.0},
    "constraint/unclipped": {"clip_low": 1.0, "clip_high": float("inf")},
    "constraint/eighty_twenty": {"part": "reasoning", "constraint.clip_low": 0.2, "constraint.clip_high": 0.28},
    "constraint/aspo": {"dual_clip": 3.0},
    "constraint/ce_gppo": {"beta_low": 0.5, "beta_high": 1.0},
    "constraint/dppo": {"divergence": "tv", "delta_low": 0.15, "delta_high": 0.15, "max_ratio": 20.0},
    "constraint/bapo": {
        "target": 0.4,
        "lower": 0.6,
        "lower_limit": 0.9,
        "upper": 1.2,
        "upper_limit": 3.0,
        "upper_step": 0.05,
    },
    "correction/tis": {"most": 2.0},
    "correction/mis": {"least": 0.5, "most": 2.0},
    "partitioner/entropy_quantile": {"quantile": 0.8},
    "partitioner/top_entropy": {"share": 0.2},
    "regularizer/kl_cov": {"share": 2e-3, "coef": 1.0},
    "regularizer/lp_reg": {"quantile": 0.01, "threshold": 0.02, "coef": 1.0},
    "weighting/stare": {"share": 0.1, "weight_pos": 1.1, "weight_neg": 1.0, "target": 0.3},
    "weighting/steer": {"least": 0.8, "floor": 0.02},
    "weighting/clip_b": {"deviations": 2.5},
    "weighting/clip_v": {"deviations": 8.5, "max_share": 1e-4},
    "weighting/erc": {"clip_low": 0.05, "clip_high": 0.05},
    "controller/halving_doubling": {"smallest": 1e-4, "least": -0.05, "most": 0.05},
    "controller/stepwise": {"target": 0.2, "step": 0.005},
    "controller/oscillating_decay": {"low_share": 0.2},
}


def members(group: str) -> list[str]:
    return sorted(file.stem for file in (config_dir() / group).glob("*.yaml"))


def component_yamls() -> Iterator[tuple[str, str]]:
    for group in COMPONENTS:
        for name in members(group):
            yield group, name


def choose(group: str, name: str) -> DictConfig:
    value = f"[{name}]" if group in SEVERAL else name
    extra = ["partitioner=entropy_quantile"] if (group, name) == ("constraint", "archer") else []
    file = ["task.path=x.jsonl"] if group == "task" and name == "jsonl" else []
    file += ["task.path=x"] if group == "task" and name == "huggingface" else []
    file += [f"verifier.path={REWARDS}"] if (group, name) == ("verifier", "function") else []
    file += ["verifier.url=http://localhost:1"] if (group, name) == ("verifier", "remote") else []
    driven = ["controller.drives=constraint.clip_high"] if group == "controller" and name != "none" else []
    return compose([f"{group}={value}", *extra, *file, *driven])


@pytest.mark.parametrize(("group", "name"), component_yamls())
def test_yaml_names_every_argument_and_its_source(group: str, name: str) -> None:
    cfg = choose(group, name)
    node = cfg[group][name] if group in SEVERAL and name != "none" else cfg[group]
    text = (config_dir() / group / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    if name == "none":
        assert node == {}
        return
    target = str(node._target_)
    build: Any = get_class(target) if target.rpartition(".")[2][0].isupper() else None
    if build is not None:
        # A Protocol's own constructor takes anything.
        parameters = set(inspect.signature(build).parameters) - {"args", "kwargs"}
        assert set(node) - {"_target_"} == parameters
    if "VLLM" in target and not vllm_installed():
        pytest.skip("vllm is not installed")
    if name != "replay" and (group != "task" or name == "arithmetic"):
        assert instantiate(node, _convert_="all") is not None


@pytest.mark.parametrize("name", [*TINY, *FULL_SIZE])
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_every_experiment_composes_and_its_objective_builds(name: str, variant: str) -> None:
    cfg = compose([f"conf={name}", f"variant={variant}"])
    assert cfg.name == name
    module = build_module(cfg, model_source(compose([])))
    assert module.temperature == 1.0
    rows = dict(DerivedNumbers.of(cfg).rows)
    assert rows["prompts x group"] == f"{cfg.rollout.prompts_per_epoch} x {cfg.rollout.group_size}"


@pytest.mark.parametrize("yaml", sorted(NUMBERS))
def test_numbers_of_a_yaml_are_the_papers(yaml: str) -> None:
    group, name = yaml.split("/")
    cfg = choose(group, name)
    node = cfg[group][name] if group in SEVERAL else cfg[group]
    assert {key: OmegaConf.select(node, key) for key in NUMBERS[yaml]} == NUMBERS[yaml]


def test_the_papers_numbers() -> None:
    archer = compose(["conf=archer_math_1_5b"])
    assert archer.partitioner.quantile == 0.8
    assert archer.constraint.clip_low == archer.constraint.clip_high == {"knowledge": 0.2, "reasoning": 0.5}
    assert archer.constraint.kl_coef == {"knowledge": 0.001, "reasoning": 0.0}
    assert (archer.constraint.dual_clip, archer.constraint.kl_estimator) == (10.0, "k3")
    assert (archer.rollout.prompts_per_epoch, archer.rollout.prompts_per_step, archer.rollout.passes) == (64, 32, 3)
    assert (archer.rollout.group_size, archer.rollout.max_prompt_tokens, archer.rollout.max_new_tokens) == (
        16,
        2048,
        32768,
    )
    assert archer.optim == {
        "name": "adamw",
        "schedule": "constant",
        "lr": 1e-6,
        "weight_decay": 0.1,
        "betas": [0.9, 0.999],
        "warmup_steps": 10,
        "grad_clip": 1.0,
    }
    assert archer.rollout.drop_equal_groups
    assert archer.model.path == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    for name, rho in (("lp_reg_qwen3_14b", 0.01), ("lp_reg_qwen2_5_32b", 0.005)):
        cfg = compose([f"conf={name}"])
        regularizer = cfg.regularizer.lp_reg
        assert (regularizer.quantile, regularizer.threshold, regularizer.coef) == (rho, 0.02, 1.0)
        assert (cfg.constraint.max_ratio, cfg.rollout.prompts_per_epoch, cfg.rollout.group_size) == (10.0, 256, 8)
        assert (cfg.rollout.max_new_tokens, cfg.optim.lr, cfg.optim.weight_decay) == (8192, 1e-6, 0.0)


def test_derived_numbers_of_a_full_size_run() -> None:
    rows = dict(DerivedNumbers.of(compose(["conf=archer_code_1_5b"])).rows)
    assert rows["responses per epoch"] == "1,024"
    assert rows["optimizer steps per epoch"] == "6 of 512 responses (off-policy)"
    assert rows["response tokens per epoch"] == f"at most {1024 * 32768:,}"
    on_policy = dict(DerivedNumbers.of(compose(["conf=lp_reg_qwen3_14b"])).rows)
    assert on_policy["optimizer steps per epoch"] == "1 of 2,048 responses (on-policy)"


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_run_refuses_a_small_machine(name: str) -> None:
    cfg = compose([f"conf={name}", "hardware.gpus=1000"])
    with pytest.raises(
        HardwareError, match=f"{name} needs 1000 GPUs of {cfg.hardware.gpu_memory_gb} GiB; here are .* run it there"
    ):
        check_hardware(cfg)


def test_a_verifier_must_judge_what_the_run_learns_from() -> None:
    class Runs:
        judges = "code"

        def __call__(self, response: str, problem: Problem) -> Verdict:
            raise NotImplementedError

    class Silent:
        def __call__(self, response: str, problem: Problem) -> Verdict:
            raise NotImplementedError

    code, answers = compose(["conf=archer_code_1_5b"]), compose(["conf=archer_math_1_5b"])
    check_judge(code, Runs())
    check_judge(answers, Silent())
    for cfg, verifier, said in (
        (code, Silent(), "is judged by its code, and Silent judges answer"),
        (answers, Runs(), "archer_math_1_5b is judged by its answer, and Runs judges code: choose"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_judge(cfg, verifier)


def leaves(node: Any, depth: int = 1) -> Iterator[int]:
    for value in node.values():
        if isinstance(value, dict) and value:
            yield from leaves(value, depth + 1)
        else:
            yield depth


def test_the_default_configuration_is_small() -> None:
    container = OmegaConf.to_container(compose([]))
    assert isinstance(container, dict)
    depths = list(leaves(container))
    assert len(depths) < 120
    assert max(depths) <= 3


def test_the_configuration_tree_of_a_checkout_lies_beside_the_package() -> None:
    assert config_dir() == Path(__file__).parents[1] / "conf"
    assert (config_dir() / "experiment" / "archer.yaml").is_file()


def test_the_configuration_tree_of_a_wheel_lies_inside_the_package(tmp_path: Path) -> None:
    # As the wheel of tests/processes/test_ranks.py is unpacked; what lies beside it is somebody else's.
    site, root = tmp_path / "site", Path(__file__).parents[1]
    shutil.copytree(root / "rlvr_lightning", site / "rlvr_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "conf", site / "rlvr_lightning" / "conf")
    shutil.copytree(root / "conf", site / "conf")
    code = "from rlvr_lightning.config.compose import config_dir; print(config_dir())"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(site / "rlvr_lightning" / "conf")


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_devices_auto_counts_the_ranks_lightning_starts(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CPUAccelerator, "auto_device_count", staticmethod(lambda: 3))
    settings = ("trainer.accelerator=cpu", "trainer.devices=auto", f"strategy={strategy}", f"output_dir={tmp_path}")
    with pytest.raises(ConfigError, match="are 3 ranks" if strategy == "single" else "multiple of the 3 ranks"):
        build_trainer(compose(settings), [], MetricsTable(tmp_path))
    if strategy != "single":
        trainer = build_trainer(compose([*settings, "rollout.prompts_per_step=6"]), [], MetricsTable(tmp_path))
        assert trainer.num_devices == 3
