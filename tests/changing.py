"""A run with one setting of a component changed, and whether that makes a difference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlvr_lightning.config.compose import compose

# Groups of which there may be several, each under its name.
SEVERAL = ("regularizer", "weighting")
# Group and yaml: what the run has besides, then another value for each setting.
Table = dict[str, tuple[tuple[str, ...], dict[str, Any]]]


def chosen(group: str, name: str) -> str:
    return f"{group}=[{name}]" if group in SEVERAL else f"{group}={name}"


def path_of(group: str, name: str) -> str:
    return f"{group}.{name}" if group in SEVERAL else group


def tried(tables: dict[str, Table]) -> Iterator[tuple[str, str, str, Any, tuple[str, ...]]]:
    for table in tables.values():
        for yaml, (context, others) in table.items():
            group, name = yaml.split("/")
            for setting, value in others.items():
                yield group, name, setting, value, context


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose(overrides)


def changed(overrides: tuple[str, ...], setting: str, value: Any) -> DictConfig:
    """The run with one setting changed."""
    cfg = composed(overrides).copy()
    assert OmegaConf.select(cfg, setting, default="nobody") != "nobody"
    OmegaConf.update(cfg, setting, value, merge=False)
    return cfg


def differs(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(bool((mine - theirs).abs().max() > 1e-6) for mine, theirs in zip(one, other, strict=True))
