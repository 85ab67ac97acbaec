"""The configuration of a run that goes on: the one it was saved with, and what is overridden this time.

An override is applied or refused with the reason, never ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlvr_lightning.config.compose import REMOVED, SECTIONS, groups, leaf_keys
from rlvr_lightning.errors import CheckpointError, ConfigError, nearest

log = logging.getLogger(__name__)

# Where a run is computed, what draws its responses and what it is measured on is no part of what it is.
EXCHANGEABLE = ("strategy", "engine", "benchmark", "benchmarks")
KEPT = ("resume", *EXCHANGEABLE)
# Refused for every verb: nothing would come of them.
UNUSED = {
    "variant": "its components were made with it: set theirs, such as constraint.variant",
    "output_dir": "a run goes on in its own folder",
}
# Refused while training: books or order would be another run's.
FIXED = {
    "seed": "the order of the prompts and the seed of every response follow from it",
    "model.path": "weights and reference are that model's; if its folder has moved, write the new place into config.yaml",
    "model.reference_rate": "the reference is where it has taken it",
    "peft": "the checkpoint's adapters were made by it",
    "optim.name": "the checkpoint's optimizer state is of the optimizer it began with",
    "controller.drives": "a run keeps its controller",
    "controller.initial": "the driven number has moved on from where it began",
}


def split(arguments: Sequence[str], valued: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for Hydra to compose, and what is for `resumed` to apply: without `resume=` nothing.

    Args:
        arguments: options first, then overrides.
        valued: options that take a value.
    """
    composed: list[str] = []
    applied: list[str] = []
    previous = ""
    for item in arguments:
        key = _key(item)
        for_hydra = item.startswith("-") or previous in valued or key in KEPT or key.startswith("hydra")
        (composed if for_hydra else applied).append(item)
        previous = item
    if any(_key(item) == "resume" and not item.endswith("=null") for item in composed):
        return composed, applied
    return list(arguments), []


def resumed(cfg: DictConfig, overrides: Sequence[str], *, training: bool = True) -> DictConfig:
    """The configuration saved in `cfg.resume`, with the values overridden this time.

    Args:
        cfg: composed with `resume` and, where they are exchanged, `strategy` and `engine`.
        overrides: this time's, all of them.
        training: for `fit`; other verbs only measure, and may with other settings.

    Raises:
        CheckpointError: the folder holds no run.
        ConfigError: an override names nothing of that run, or what a run cannot change once it has begun.
    """
    folder = Path(cfg.resume).expanduser()
    if not (folder / "config.yaml").is_file() or not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"resume={folder} holds no run: config.yaml and checkpoints/ must be there")
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    _add_newer_settings(saved, cfg)
    _leave_out_removed(saved)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    named = {item.key_or_group for item in parsed} & {*EXCHANGEABLE}
    # A suite brings its benchmarks.
    for group in named | ({"benchmark"} if "benchmarks" in named else set()):
        saved[group] = cfg[group]
    for item in parsed:
        if item.key_or_group not in KEPT:
            _check(saved, item, training=training)
            OmegaConf.update(saved, item.key_or_group, item.value())
    OmegaConf.resolve(saved)
    saved.resume = saved.output_dir = str(folder)
    return saved


def _check(saved: DictConfig, item: Override, *, training: bool) -> None:
    key = item.key_or_group
    if key in ("experiment", "conf", *groups()):
        name = "conf" if key == "experiment" else key
        raise ConfigError(f"a resumed run keeps its components; {name} cannot be set together with resume=")
    if item.is_sweep_override():
        raise ConfigError(f"{key} has several values: a run goes on with one of them")
    found: Any = OmegaConf.select(saved, key, default=KeyError)
    if found is KeyError or item.is_delete():
        raise ConfigError(f"the run has no setting {key} to override; {nearest(key, list(leaf_keys(saved)))}")
    exchanged = OmegaConf.is_dict(found) and ("_target_" in found or key in SECTIONS)
    if exchanged or key.endswith("_target_"):
        raise ConfigError(
            f"a resumed run keeps its components: {key} cannot be exchanged as a whole, only values in it"
        )
    for fixed, reason in {**UNUSED, **(FIXED if training else {})}.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise ConfigError(f"{key} cannot be changed in a run that has begun: {reason}")
    driven = saved.controller.drives if saved.controller else None
    if driven is not None and f"{driven}.".startswith(f"{key}."):
        raise ConfigError(
            f"{driven} is driven by the controller, which sets it before every optimizer step: change the controller's "
            "settings instead"
        )


def _add_newer_settings(saved: DictConfig, cfg: DictConfig) -> None:
    """Settings and groups that came after the run was saved, with their defaults, which leave a run as it was."""
    for key, value in cfg.items():
        if key not in saved:
            saved[key] = value
        elif key in SECTIONS:
            for name, default in value.items():
                if name not in saved[key]:
                    saved[key][name] = default


def _leave_out_removed(saved: DictConfig) -> None:
    """Settings of the version the run was saved by that are gone."""
    for key in REMOVED:
        section, _, name = key.rpartition(".")
        if name in saved[section]:
            log.warning("config.yaml sets %s=%s: %s", key, saved[section].pop(name), REMOVED[key])


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def settled(cfg: DictConfig, later: Sequence[str], *, training: bool) -> DictConfig:
    """What Hydra composed for this job with all interpolations resolved; a resumed run's own configuration instead of today's.

    Args:
        cfg: as Hydra hands it to a job.
        later: overrides that Hydra does not know, of a resumed run's own configuration.
        training: whether the job is `fit`.
    """
    OmegaConf.resolve(cfg)
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        # The runs of a sweep would share a time stamp: each gets the folder Hydra made for it.
        given = any(override.startswith("output_dir=") for override in hydra.overrides.task)
        cfg.output_dir = f"{cfg.output_dir}/{hydra.sweep.subdir}" if given else hydra.runtime.output_dir
    if OmegaConf.select(cfg, "resume") is None:
        return cfg
    return resumed(cfg, [*hydra.overrides.task, *later], training=training)
