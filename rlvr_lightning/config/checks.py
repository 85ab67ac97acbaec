"""Are a run's values of the right kind? Numbers where numbers belong, before anything is built from them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.config.compose import REMOVED, SECTIONS, config_dir
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import Verifier
from rlvr_lightning.verifiers.protocol import Judge

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}
# Null by default, but not of every kind.
OPTIONAL: dict[str, type] = {
    "rollout.prompts_per_step": int,
    "trainer.micro_batch_size": int,
    "trainer.forces_every_n_steps": int,
    "trainer.save_every_n_steps": int,
    "trainer.save_every_n_minutes": float,
    "evaluation.folder": str,
    "evaluation.every_n_steps": int,
    "evaluation.samples": int,
    "evaluation.temperature": float,
    "evaluation.top_p": float,
    "evaluation.max_new_tokens": int,
    "evaluation.limit": int,
}
# Of several kinds: checked where they are read.
MANIFOLD = (
    "rollout.exact_seeds",
    "rollout.canary_tolerance",
    "model.gradient_checkpointing",
    "grading.values",
    "grading.workers",
)


def check_kinds(cfg: DictConfig) -> None:
    """Compare each setting's kind with its default's.

    Raises:
        ConfigError: a setting is of another kind, null where a value is needed, or gone from this version.
    """
    for key, instead in REMOVED.items():
        if OmegaConf.select(cfg, key) is not None:
            raise ConfigError(instead)
    for section in SECTIONS:
        for name, default in _defaults()[section].items():
            key, value = f"{section}.{name}", cfg[section][name]
            kind = OPTIONAL.get(key, type(default))
            if key in MANIFOLD or (key in OPTIONAL and value is None):
                continue
            if key == "rollout.packing" and isinstance(value, bool):
                continue
            if key in ("trainer.devices", "optim.grad_clip") and (value is None or value == "auto"):
                continue
            if not _fits(_plain(value), kind):
                raise ConfigError(f"{key} must be {KINDS[kind]}; got {value!r}")
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise ConfigError(f"seed must be a whole number from 0; got {cfg.seed!r}")


def check_least(cfg: DictConfig) -> None:
    """Is there something to run on?

    Raises:
        ConfigError: a number is too small.
    """
    for key, least in (("devices", 1), ("num_nodes", 1), ("max_epochs", 0)):
        if isinstance(cfg.trainer[key], int) and cfg.trainer[key] < least:
            raise ConfigError(f"trainer.{key} must be at least {least}; got {cfg.trainer[key]}")


def check_folder(folder: Path) -> None:
    """Can a run leave its files there? Writes nothing.

    Raises:
        ConfigError: it is in the place of a file, or may not be written to.
    """
    nearest = next((path for path in (folder, *folder.parents) if os.access(path, os.F_OK)), folder)
    if not nearest.is_dir():
        raise ConfigError(f"output_dir={folder} cannot be a folder: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir={folder} cannot be written: {nearest} is closed to you; choose another place")


def check_unused(folder: Path) -> None:
    """Is it free for a run that begins anew? Its own checkpoints and another run's could not be told apart.

    Raises:
        ConfigError: it holds a run's checkpoints.
    """
    if any((folder / "checkpoints").glob("step_*")):
        raise ConfigError(
            f"output_dir={folder} holds a run already: go on with it by resume={folder}, or choose another output_dir"
        )


def check_judge(cfg: DictConfig, verifier: Verifier) -> None:
    """Does the verifier judge what the run's responses are?

    Raises:
        ConfigError: it does not.
    """
    if cfg.judged not in ("answer", "code"):
        raise ConfigError(f"judged must be answer or code; got {cfg.judged!r}")
    judges = verifier.judges if isinstance(verifier, Judge) else "answer"
    if judges != cfg.judged:
        raise ConfigError(
            f"{cfg.name} is judged by its {cfg.judged}, and {type(verifier).__name__} judges {judges}: choose a verifier "
            f"that judges {cfg.judged}: verifier=NAME, see docs/extending.md"
        )


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    held = OmegaConf.load(config_dir() / "config.yaml")
    assert isinstance(held, DictConfig)
    return {section: {name: _plain(value) for name, value in held[section].items()} for section in SECTIONS}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
