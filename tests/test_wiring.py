"""Every setting of a run reaches the object it is meant for: none is read and forgotten between yaml and constructor.

What each of them then does is tested with that object; `test_every_setting.py` does the same for components' yamls.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlvr_lightning.callbacks.profile import ProfileCallback
from rlvr_lightning.callbacks.screen import ScreenCallback
from rlvr_lightning.config.build import Run, build_run
from rlvr_lightning.config.compose import SECTIONS, compose, config_dir
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.training.checkpoints import Checkpoints
from rlvr_lightning.training.sharding import ShardSettings

Where = Callable[[Run], Any]

# Setting: a value that is not the default, where it is found, and as what.
REACHES: dict[str, tuple[Any, Where, Any]] = {
    "model.path": ("./model", lambda run: run.module.source.path, "./model"),
    "model.gradient_checkpointing": (2, lambda run: run.module.source.gradient_checkpointing, 2),
    "model.reference_rate": (0.25, lambda run: run.module.reference.rate, 0.25),
    "model.attention": ("eager", lambda run: run.module.source.attention, "eager"),
    "rollout.group_size": (6, lambda run: run.data.group_size, 6),
    "rollout.prompts_per_epoch": (12, lambda run: run.data.prompts_per_epoch, 12),
    "rollout.prompts_per_step": (4, lambda run: run.data.prompts_per_step, 4),
    "rollout.passes": (3, lambda run: run.data.passes, 3),
    "rollout.temperature": (0.7, lambda run: (run.data.temperature, run.module.temperature), (0.7, 0.7)),
    "rollout.max_new_tokens": (20, lambda run: run.data.sampling.max_new_tokens, 20),
    "rollout.max_prompt_tokens": (99, lambda run: run.data.max_prompt_tokens, 99),
    "rollout.overlong_prompts": ("error", lambda run: run.data.overlong_prompts, "error"),
    "rollout.drop_equal_groups": (True, lambda run: run.data.drop_equal_groups, True),
    "rollout.generation_batches": (5, lambda run: run.data.generation_batches, 5),
    "rollout.packing": (False, lambda run: run.data.packing, False),
    "rollout.truncated": ("mask", lambda run: run.data.truncated, "mask"),
    "rollout.eval_samples": (3, lambda run: (run.data.eval_samples, run.module.eval_samples), (3, 3)),
    "grading.values": (
        {"correct": 2.0, "wrong": -1.0, "unparsable": "judged", "timeout": -3.0},
        lambda run: run.data.grading.values,
        {"correct": 2.0, "wrong": -1.0, "unparsable": "judged", "timeout": -3.0},
    ),
    "grading.max_error_share": (0.5, lambda run: run.data.grading.max_error_share, 0.5),
    "grading.workers": (3, lambda run: run.data.grading.workers, 3),
    "grading.timeout_s": (7.0, lambda run: run.data.grading.timeout_s, 7.0),
    "optim.name": ("adamw_8bit", lambda run: run.module.optim.name, "adamw_8bit"),
    "optim.lr": (0.5, lambda run: run.module.optim.lr, 0.5),
    "optim.weight_decay": (0.25, lambda run: run.module.optim.weight_decay, 0.25),
    "optim.betas": ([0.5, 0.75], lambda run: run.module.optim.betas, (0.5, 0.75)),
    "optim.schedule": ("cosine", lambda run: run.module.optim.schedule, "cosine"),
    "optim.warmup_steps": (7, lambda run: run.module.optim.warmup_steps, 7),
    "optim.grad_clip": (None, lambda run: run.module.optim.grad_clip, None),
    "trainer.max_epochs": (11, lambda run: run.trainer.max_epochs, 11),
    "trainer.val_every_n_epochs": (
        13,
        lambda run: (run.trainer.check_val_every_n_epoch, callback(run, Checkpoints).every_n_epochs),
        (13, 13),
    ),
    "rollout.max_lag": (0, lambda run: run.data.max_lag, 0),
    "rollout.exact_seeds": (False, lambda run: run.data.exact_seeds, False),
    "rollout.canary_tolerance": (0.25, lambda run: run.data.canary_tolerance, 0.25),
    "trainer.diagnostics_every_n_steps": (7, lambda run: run.module.diagnostics_every, 7),
    "trainer.forces_every_n_steps": (6, lambda run: run.module.forces_every, 6),
    "trainer.show_every_n_epochs": (17, lambda run: callback(run, ScreenCallback).every, 17),
    "trainer.micro_batch_tokens": (321, lambda run: run.data.budget.tokens, 321),
    "trainer.micro_batch_size": (9, lambda run: run.data.budget.rows, 9),
    "trainer.accelerator": ("cpu", lambda run: type(run.trainer.accelerator).__name__, "CPUAccelerator"),
    "trainer.devices": (2, lambda run: run.trainer.num_devices, 2),
    "trainer.num_nodes": (2, lambda run: run.trainer.num_nodes, 2),
    "trainer.precision": ("bf16-mixed", lambda run: run.module.sharding.precision, "bf16-mixed"),
    "trainer.save_every_n_steps": (19, lambda run: callback(run, Checkpoints).every_n_steps, 19),
    "trainer.save_every_n_minutes": (2.5, lambda run: callback(run, Checkpoints).every_n_minutes, 2.5),
    "trainer.profile": (True, lambda run: callback(run, ProfileCallback).file.name, "trace.json.gz"),
    "strategy.cpu_offload": (True, lambda run: run.module.sharding.cpu_offload, True),
    "strategy.reshard_after_forward": (False, lambda run: run.module.sharding.reshard_after_forward, False),
    "strategy.shard_over": ("node", lambda run: run.module.sharding.shard_over, "node"),
    "strategy.reduce_gradients": ("micro_batch", lambda run: run.module.sharding.reduce_gradients, "micro_batch"),
}
# They make no run but decide whether there is one, or are read by a verb.
ELSEWHERE = {
    "rollout.top_p": "test_cli.py",
    "evaluation.folder": "test_unmeasurable.py",
    "evaluation.models": "test_benchmarks.py",
    "evaluation.every_n_steps": "test_benchmarks.py",
    "evaluation.samples": "test_benchmarks.py",
    "evaluation.temperature": "test_benchmarks.py",
    "evaluation.top_p": "test_benchmarks.py",
    "evaluation.max_new_tokens": "test_benchmarks.py",
    "evaluation.limit": "test_benchmarks.py",
    "evaluation.batch_responses": "test_benchmarks.py",
    "hardware.gpus": "test_contracts.py",
    "hardware.gpu_memory_gb": "test_plan.py",
    "hardware.check": "test_plan.py",
}


def callback(run: Run, kind: type) -> Any:
    (found,) = [item for item in run.trainer.callbacks if isinstance(item, kind)]  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with all of them."""
    folder = tmp_path_factory.mktemp("wiring")
    (folder / "model").symlink_to(config_dir().parent / "rlvr_lightning" / "assets" / "tiny")
    given = {
        "strategy": "fsdp",
        "constraint.kl_coef": 0.1,
        "engine": "transformers",
        "output_dir": str(folder / "run"),
        "seed": 23,
    }
    given |= {key: value for key, (value, _, _) in REACHES.items()}
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    written = {key: "null" if value is None else str(value).replace("'", "") for key, value in given.items()}
    built = build_run(compose([f"{key}={value}" for key, value in written.items()]))
    patch.undo()
    return built


@pytest.mark.parametrize("key", sorted(REACHES))
def test_a_setting_reaches_its_object(key: str, run: Run) -> None:
    _, where, expected = REACHES[key]
    assert where(run) == expected


def test_the_seed_is_the_runs(run: Run) -> None:
    assert run.data.seed == 23


def test_no_setting_is_left_out() -> None:
    held = OmegaConf.load(config_dir() / "config.yaml")
    known = {f"{section}.{name}" for section in SECTIONS for name in held[section]}
    known |= {f"strategy.{name}" for name in OmegaConf.load(config_dir() / "strategy" / "fsdp.yaml") if name != "name"}
    assert known == set(REACHES) | set(ELSEWHERE)
    for key, file in ELSEWHERE.items():
        assert key in (Path(__file__).parent / file).read_text(), key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpu_offload": "yes"}, "strategy.cpu_offload must be true or false; got 'yes'"),
        ({"reshard_after_forward": 1}, "strategy.reshard_after_forward must be true or false; got 1"),
        ({"shard_over": "rack"}, "strategy.shard_over must be .*; got rack"),
        ({"reduce_gradients": "epoch"}, "strategy.reduce_gradients must be .*; got epoch"),
        ({"precision": "16-mixed"}, "trainer.precision=16-mixed is refused"),
        ({"precision": "".join(("16", "-mixed"))}, "trainer.precision=16-mixed is refused"),
    ],
)
def test_what_sharding_does_not_know_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardSettings(**settings)
