"""One number of one component by its path: reading it, and setting it by building the component anew.

Components keep their constructor's arguments as attributes of the same names and hold no other state, so a component
with one argument changed is the constructor called again, which also checks the range.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvr_lightning.errors import ConfigError, nearest
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.protocols import Component

PLAIN = (bool, int, float, str, list, tuple, type(None))
# Roles with several components, each under a name, and where the objective keeps them.
SEVERAL = {"regularizer": "regularizers", "weighting": "weightings"}


class Setting:
    """A number of an objective, such as `constraint.clip_high.reasoning` or `regularizer.lp_reg.quantile`.

    Args:
        objective: holds the component.
        path: role, for a regularizer or weighting its name, then the setting; a component inside another one, or a part, adds
            a name.

    Raises:
        ConfigError: nothing is there, or no number, or a number of the rollout phase.
    """

    def __init__(self, objective: Objective, path: str) -> None:
        self.objective, self.path = objective, path
        self._role, *self._keys = path.split(".")
        if self._role == "advantage":
            raise ConfigError(
                f"controller.drives={path}: advantages are made once a rollout phase, before its optimizer steps, so "
                "a controller cannot move their settings"
            )
        known = numbers(objective)
        if path not in known:
            raise ConfigError(f"controller.drives={path} is no number of this run's components; {nearest(path, known)}")

    @property
    def value(self) -> float:
        """As it is now."""
        node: Any = _roles(self.objective)[self._role]
        for key in self._keys:
            node = _children(node)[key]
        return float(node)

    def component_at(self, value: float) -> Any:
        """The role's component (of several, all of them) with this value; the objective keeps its own.

        Raises:
            ConfigError: the component refuses the value.
        """
        return _rebuilt(_roles(self.objective)[self._role], self._keys, value)

    def set(self, value: float) -> None:
        """Exchange the objective's component for one with this value.

        Raises:
            ConfigError: the component refuses the value.
        """
        objective = self.objective
        setattr(objective, SEVERAL.get(self._role, self._role), self.component_at(value))
        if self._role in ("constraint", "partitioner"):
            objective.constraint.bind(objective.partitioner.parts)

    def check(self, **bounds: float) -> None:
        """Can the number take these values between two optimizer steps of a run?

        The objective is told where one of them needs the reference, or other statistics of the policy at the start of
        an update: these are made once a rollout phase, so that such a number can move on-policy alone.

        Args:
            bounds: values, under the names the user knows them by.

        Raises:
            ConfigError: the component refuses one.
        """
        needed = _remembered(_roles(self.objective)[self._role])
        for name, value in bounds.items():
            try:
                component = self.component_at(value)
            except ConfigError as error:
                raise ConfigError(f"{self.path} cannot be controller.{name}={value}: {error}") from error
            if _remembered(component) != needed:
                self.objective.always_on_policy = (f"controller.drives={self.path}",)
            self.objective.always_ref |= any(part.requires_ref for part in _components(component))


def numbers(objective: Objective) -> list[str]:
    """Paths of all numbers of an objective's components."""
    return list(_numbers(_roles(objective)))


def _roles(objective: Objective) -> dict[str, Any]:
    return {
        "partitioner": objective.partitioner,
        "constraint": objective.constraint,
        "regularizer": objective.regularizers,
        "weighting": objective.weightings,
        "correction": objective.correction,
        "aggregator": objective.aggregator,
    }


def _arguments(component: Any) -> list[str]:
    """Names of a constructor's arguments; a Protocol's own constructor takes anything, which is none."""
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(type(component)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in anything]


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, PLAIN):
        return {}
    if isinstance(node, Mapping):
        return dict(node)
    return {name: getattr(node, name) for name in _arguments(node) if hasattr(node, name)}


def _numbers(nodes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, child in nodes.items():
        if isinstance(child, (int, float)) and not isinstance(child, bool):
            yield prefix + name
        yield from _numbers(_children(child), f"{prefix}{name}.")


def _rebuilt(node: Any, keys: Sequence[str], value: float) -> Any:
    if not keys:
        return value
    children = _children(node)
    children[keys[0]] = _rebuilt(children[keys[0]], keys[1:], value)
    if isinstance(node, Mapping):
        return children
    lost = [name for name in _arguments(node) if name not in children]
    if lost:
        raise ConfigError(
            f"{type(node).__name__} does not keep its argument {lost[0]} as an attribute, so a controller cannot build "
            "it anew with another value"
        )
    return type(node)(**children)


def _components(node: Any) -> list[Component]:
    candidates = node.values() if isinstance(node, Mapping) else [node]
    return [part for part in candidates if isinstance(part, Component)]


def _remembered(node: Any) -> set[str]:
    """Names of the statistics made of the policy at the start of an update, and of the reference."""
    once = {"rollout", "reference"}
    return {item.name for part in _components(node) for item in part.requires if once & set(item.passes)}
