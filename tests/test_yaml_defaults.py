"""The defaults of a class are those of its yaml."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.training.optim import OptimSettings

# A yaml of another method that has the same class.
VARIATIONS = {
    "advantage/dr_grpo",
    "constraint/archer",
    "constraint/clip_higher",
    "constraint/unclipped",
    "verifier/composite",
}


def own_yamls() -> Iterator[tuple[str, dict[str, Any]]]:
    for group in sorted(
        {path.parent.name for path in config_dir().glob("*/*.yaml")} - {"experiment", "engine", "benchmark"}
    ):
        for path in sorted((config_dir() / group).glob("*.yaml")):
            held = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            name = f"{group}/{path.stem}"
            if isinstance(held, dict) and str(held.get("_target_", "")).startswith("rlvr") and name not in VARIATIONS:
                yield name, {str(key): value for key, value in held.items()}


@pytest.mark.parametrize(("yaml", "held"), [*own_yamls()], ids=lambda value: value if isinstance(value, str) else "")
def test_the_defaults_of_a_class_are_those_of_its_yaml(yaml: str, held: dict[str, Any]) -> None:
    kind = get_class(held.pop("_target_"))
    parameters = inspect.signature(kind).parameters
    compared = 0
    for name, value in held.items():
        plain = not isinstance(value, dict) and not (isinstance(value, str) and ("${" in value or value == "???"))
        if plain and name in parameters and parameters[name].default is not inspect.Parameter.empty:
            if yaml.startswith("task/") and name == "template":
                continue
            default = parameters[name].default
            assert ([*default] if isinstance(default, tuple) else default) == value, name
            compared += 1
    assert compared or yaml.endswith(("eighty_twenty", "single", "rloo", "token_mean", "overlong", "countdown"))


def test_the_defaults_of_the_optimizer_are_the_configurations() -> None:
    held = OmegaConf.to_container(compose([]).optim)
    assert isinstance(held, dict)
    own = {item.name: item.default for item in dataclasses.fields(OptimSettings)}
    assert own == {**held, "betas": tuple(held["betas"])}
