"""Composing a run's configuration, and saying what is wrong with it in one line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlvr_lightning.errors import ConfigError, RLVRError, nearest

# Sections that hold plain settings; components check their own in their constructors.
SECTIONS = ("model", "rollout", "grading", "evaluation", "optim", "trainer", "hardware")
# What was taken away, and what to type instead.
REMOVED = {
    "model.dtype": "there is no model.dtype any more, weights and optimizer state are float32: trainer.precision says "
    "what is computed in (32-true, bf16-mixed), engine.dtype what is sampled in"
}


def config_dir() -> Path:
    """Where the configuration tree lies: beside the package in a checkout, inside it in a wheel.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"the configuration tree is missing: neither {package}/conf nor {package.parent}/conf exists")


def compose(overrides: Sequence[str] = (), config_name: str = "config") -> DictConfig:
    """A run's configuration from Python, as the command line composes it.

    Args:
        overrides: as on the command line; `conf=archer` selects an experiment.
        config_name: the primary configuration.

    Raises:
        ConfigError: an override names something that does not exist, with the nearest names.
    """
    overrides = [experiment_override(item) for item in overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = hydra_compose(config_name, overrides)
        OmegaConf.resolve(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    return cfg


def experiment_override(argument: str) -> str:
    """`conf=archer` is `experiment=archer`; anything else stays."""
    return f"experiment={argument.removeprefix('conf=')}" if argument.startswith("conf=") else argument


def leaf_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values and mappings below a node."""
    for key in node:
        name = prefix + str(key)
        yield name
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from leaf_keys(child, f"{name}.")


def explain(error: BaseException) -> RLVRError:
    """A configuration error of any layer as one of ours, in one line: what, where, what to do."""
    chain = list(_causes(error))
    for link in chain:
        if isinstance(link, RLVRError):
            return link
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file and link.options is not None:
            group, _, name = str(link.missing_cfg_file).rpartition("/")
            return _absent(group, name, link.options)
        if isinstance(link, MissingMandatoryValue):
            return ConfigError(f"{link.full_key} must be given: {link.full_key}=...")
    absent = re.search(r"Could not load '([\w/]+)/([\w.-]+)'", str(error))
    if absent is not None:
        return _absent(absent.group(1), absent.group(2), _members(absent.group(1)))
    if isinstance(error, ConfigCompositionException):
        return _explain_override(str(error))
    if isinstance(error, InstantiationException):
        return _explain_construction(str(error), str(chain[-1]))
    return ConfigError(_one_line(str(error)))


def _explain_construction(text: str, cause: str) -> ConfigError:
    key = re.search(r"full_key: (\S+)", text)
    where = key.group(1) if key else "a component"
    unknown = re.search(r"unexpected keyword argument '(\w+)'", cause)
    target = re.search(r"target '([\w.]+)'", text)
    if unknown is None or target is None:
        return ConfigError(f"{where}: {_one_line(cause)}")
    known = list(inspect.signature(get_object(target.group(1))).parameters)
    return ConfigError(f"there is no setting {where}.{unknown.group(1)}; {nearest(unknown.group(1), known)}")


def _absent(group: str, name: str, members: Sequence[str]) -> ConfigError:
    key = "conf" if group == "experiment" else group
    return ConfigError(f"there is no {key}={name}; {nearest(name, members)}")


def _members(group: str) -> list[str]:
    return sorted(file.stem for file in (config_dir() / group).glob("*.yaml"))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    # An error that was raised again while it was handled may stand in its own chain.
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def _explain_override(text: str) -> ConfigError:
    key = re.search(r"Could not (?:override|append to|delete from config\.?) '?([\w./@\[\]]+)'?", text)
    if key is None:
        return ConfigError(_one_line(text))
    name = key.group(1).rstrip(".")
    if name in REMOVED:
        return ConfigError(REMOVED[name])
    known: list[str] = []
    if (not GlobalHydra.instance().is_initialized() and "." in name) or "/" not in name:
        known = sorted({*leaf_keys(_default_config()), *groups()})
    if name in known:
        group = name.partition(".")[0]
        return ConfigError(f"there is no setting {name} with the {group} chosen, only with another one")
    return ConfigError(f"there is no setting {name}; {nearest(name, known)}")


def _default_config() -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra_compose("config", ["experiment=archer_lp_reg"])


def groups() -> list[str]:
    """Names of the concepts one chooses a component of."""
    return [folder.name for folder in config_dir().iterdir() if folder.is_dir() and folder.name != "experiment"]


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "; ".join(lines[:2])
