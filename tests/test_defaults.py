"""Built without Hydra a component has the numbers of its yaml: the constructor's defaults are not another opinion."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from rlvr_lightning.config.compose import config_dir
from rlvr_lightning.training.sharding import ShardSettings

# Members that are another one's class under other numbers, and a task's instruction to a language model.
OTHER_NUMBERS = {
    "advantage/dr_grpo": {"normalize"},
    "constraint/archer": {"clip_low", "clip_high", "dual_clip", "kl_coef"},
    "constraint/clip_higher": {"clip_high"},
    "constraint/unclipped": {"clip_low", "clip_high"},
    "task/huggingface": {"template"},
    "task/jsonl": {"template"},
    # By kind of tests, of which the class completes what is missing.
    "verifier/code": {"timeout_s", "limits"},
    # Goes with the parts.
    "verifier/composite": {"decides"},
}
# Each is a paper's protocol, and the class is none of them.
PROTOCOLS = "benchmark"


def members() -> dict[str, dict[str, Any]]:
    """By name, what stands in the yamls of whatever has a constructor."""
    found = {}
    for file in sorted(config_dir().glob("*/*.yaml")):
        held = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if isinstance(held, dict) and "_target_" in held and file.parent.name != PROTOCOLS:
            found[f"{file.parent.name}/{file.stem}"] = held
    return found


@pytest.mark.parametrize("name", members())
def test_defaults_are_those_of_the_yaml(name: str) -> None:
    stated = members()[name]
    parameters = inspect.signature(get_object(stated.pop("_target_"))).parameters
    other = OTHER_NUMBERS.get(name, set())
    for key, value in stated.items():
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        if default is inspect.Parameter.empty or (isinstance(value, str) and value.startswith("${")):
            continue
        default = [*default] if isinstance(default, tuple) else default
        assert (default == value) == (key not in other), (key, default, value)


def test_sharding_too() -> None:
    stated = OmegaConf.load(config_dir() / "strategy" / "fsdp.yaml")
    names = ("cpu_offload", "reshard_after_forward", "shard_over", "reduce_gradients")
    assert {name: stated[name] for name in names} == {name: getattr(ShardSettings(), name) for name in names}
