"""Numbers where numbers belong: every plain setting is refused a value of another kind, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.checks import MANIFOLD, check_kinds
from rlvr_lightning.config.compose import SECTIONS, compose, config_dir
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.rollout.micro_batches import Budget

# What a whole number, a number, a switch or a text must not be; `true` is no number, nor 1 a switch.
WRONG: dict[type, tuple[Any, ...]] = {
    int: (True, 1.5, "many", [1]),
    float: (True, "many", [1.0]),
    bool: (1, 0.0, "maybe"),
    str: (1, True, 1.5),
    list: (1, True, "both"),
}


def plain_settings() -> Iterator[tuple[str, type]]:
    held = OmegaConf.load(config_dir() / "config.yaml")
    for section in SECTIONS:
        for name, default in held[section].items():
            if default is not None:
                yield f"{section}.{name}", list if OmegaConf.is_list(default) else type(default)


def refused(key: str, value: Any) -> str:
    cfg = BASE.copy()
    assert isinstance(cfg, DictConfig)
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(ConfigError) as caught:
        check_kinds(cfg)
    return str(caught.value)


BASE = compose([])


def test_the_defaults_are_of_their_own_kind() -> None:
    check_kinds(BASE)


@pytest.mark.parametrize("key", ["trainer.save_every_n_steps", "trainer.save_every_n_minutes"])
def test_what_may_be_null_is_of_its_kind_all_the_same(key: str) -> None:
    assert refused(key, "often").startswith(f"{key} must be a")
    OmegaConf.update(cfg := BASE.copy(), key, 5)
    check_kinds(cfg)


# Settings that take words or a number beside their default; what takes anything is checked where it is used.
MIXED = {"trainer.devices": (True, 1.5), "rollout.packing": (1.5,), **dict.fromkeys(MANIFOLD, ())}


@pytest.mark.parametrize(("key", "kind"), [*plain_settings()])
def test_another_kind_is_refused(key: str, kind: type) -> None:
    for value in MIXED[key] if key in MIXED else WRONG[kind]:
        assert refused(key, value).startswith(f"{key} must be "), value


def test_the_seed_is_a_whole_number_from_nothing() -> None:
    for value in (True, False, 1.0, -1, "one", None):
        assert refused("seed", value) == f"seed must be a whole number from 0; got {value!r}"


def test_the_settings_of_a_run_are_its_budget_and_are_checked(tmp_path: Path) -> None:
    def budget(*overrides: str) -> Budget:
        return build_run(compose(["engine=transformers", *overrides, f"output_dir={tmp_path}"])).data.budget

    assert budget() == Budget(16384, None)
    assert budget("trainer.micro_batch_tokens=77", "trainer.micro_batch_size=3") == Budget(77, 3)
    refused = {
        "trainer.micro_batch_tokens=0": "trainer.micro_batch_tokens must be at least 1; got 0",
        "trainer.micro_batch_size=2.5": "trainer.micro_batch_size must be a whole number; got 2.5",
        "rollout.packing=maybe": "rollout.packing: auto, true or false; got maybe",
        "rollout.packing=1": "rollout.packing must be",
        "rollout.truncated=drop": "rollout.truncated: keep or mask; got drop",
        "model.attention=flash": "model.attention must be one of auto, .*; got 'flash'",
    }
    for override, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            budget(override)
