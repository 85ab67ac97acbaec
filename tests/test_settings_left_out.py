"""No setting of a component's yaml is left out: it is changed in a test, or said where else it is held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from component_values import ADVANTAGES, CONTROLLERS, ROWS, SHAPINGS, TASKS, VERIFIERS
from objective_values import OBJECTIVES
from omegaconf import OmegaConf

from rlvr_lightning.config.compose import config_dir


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Settings of a yaml; numbers for each part are one setting."""
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key not in ("_target_", "defaults"):
            yield prefix + key


def settings_of(file: Path) -> set[str]:
    held = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(held, dict)
    return set(leaves(held))


HYGIENE = {"decontaminate", "evaluation_paths", "difficulty", "solve_rates"}
# Held by tests of their own, which need more than a component.
LIMITS = {f"limits.{name}" for name in ("memory_mb", "processes", "open_files", "output_mb", "disk_mb")}
ELSEWHERE = {
    "engine/auto": {"dtype"},  # test_precision.py
    "engine/transformers": {"batch_size", "dtype"},  # rollout/test_transformers_engine.py, test_precision.py
    "engine/vllm": {
        "gpu_memory_utilization",
        "max_num_seqs",
        "enforce_eager",
        "cpu_kv_cache_gb",
        "tensor_parallel",
        "sleep",
        "dtype",
        "adapters",
    },  # vllm_engine/
    "engine/vllm_server": {
        "servers",
        "tensor_parallel",
        "urls",
        "router",
        "port",
        "gpu_memory_utilization",
        "max_num_seqs",
        "enforce_eager",
        "cpu_kv_cache_gb",
        "transfer",
        "transfer_folder",
        "timeout_s",
        "start_s",
        "retries",
        "restarts",
        "log_folder",
        "dtype",
        "adapters",
    },  # vllm_engine/
    "engine/replay": {"path"},  # rollout/test_replay.py
    "task/jsonl": HYGIENE,  # tasks/test_hygiene.py
    "task/huggingface": {*ROWS, "path", "name", "split", "held_out_split", *HYGIENE},  # tasks/test_huggingface.py
    "verifier/remote": {
        "url",
        "timeout_s",
        "retries",
        "concurrency",
        "token_env",
        "judges",
    },  # verifiers/test_remote.py
    # verifiers/code/test_code_verifier.py, verifiers/code/test_code_sandbox.py
    "verifier/code": {"extract", "reward", "sandbox", "timeout_s", *LIMITS},
    "regularizer/only_places": {"regularizer.kl_estimator", "regularizer.temperature"},  # as of lp_reg
    "regularizer/lp_reg": {"kl_estimator", "temperature"},  # test_every_setting.py, in the reference form
    "constraint/bapo": {"lower_limit"},  # test_every_setting.py, where the search comes to it
}


def test_no_setting_of_a_component_is_left_out() -> None:
    known: dict[str, set[str]] = {}
    for table in (OBJECTIVES, ADVANTAGES, SHAPINGS, VERIFIERS, CONTROLLERS, TASKS):
        for yaml, (_, others) in table.items():
            known[yaml] = set(others)
    for yaml, names in ELSEWHERE.items():
        known[yaml] = known.get(yaml, set()) | names
    groups = ("advantage", "aggregator", "constraint", "controller", "correction", "engine", "partitioner")
    groups += ("regularizer", "shaping", "task", "verifier", "weighting")
    files = {f"{group}/{file.stem}": file for group in groups for file in (config_dir() / group).glob("*.yaml")}
    assert known == {yaml: settings_of(file) for yaml, file in files.items()}
