"""Are a run's values of the right kind? Numbers where numbers belong, before anything is built from them."""

from __future__ import annotations

from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.config.compose import SECTIONS, config_dir
from rlvr_lightning.errors import ConfigError

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}
# Null by default, but not of every kind.
OPTIONAL: dict[str, type] = {"rollout.prompts_per_step": int}


def check_kinds(cfg: DictConfig) -> None:
    """Compare each setting's kind with its default's.

    Raises:
        ConfigError: a setting is of another kind, or null where a value is needed.
    """
    for section in SECTIONS:
        for name, default in _defaults()[section].items():
            key, value = f"{section}.{name}", cfg[section][name]
            kind = OPTIONAL.get(key, type(default))
            if key in OPTIONAL and value is None:
                continue
            if key in ("trainer.devices", "optim.grad_clip") and (value is None or value == "auto"):
                continue
            if not _fits(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, kind):
                raise ConfigError(f"{key} must be {KINDS[kind]}; got {value!r}")
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise ConfigError(f"seed must be a whole number from 0; got {cfg.seed!r}")


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    held = OmegaConf.load(config_dir() / "config.yaml")
    assert isinstance(held, DictConfig)
    return {section: dict(held[section].items()) for section in SECTIONS}


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, list) if "List" in kind.__name__ else isinstance(value, kind)
