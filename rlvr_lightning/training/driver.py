"""Between a controller and an objective: measures the entropy of each optimizer step and sets the number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.methods.controllers.protocol import Controller
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.training.settings import Setting
from rlvr_lightning.types import StepPlan, TokenStats


class Driver:
    """Runs a controller once an optimizer step.

    Args:
        controller: says how the number follows the entropy.
        objective: holds the component; the number is set to the controller's first value at once.

    Raises:
        ConfigError: the number, one of its bounds or the part does not suit the objective.
    """

    def __init__(self, controller: Controller, objective: Objective) -> None:
        self.controller, self.setting = controller, Setting(objective, controller.drives)
        parts = objective.partitioner.parts
        if controller.part is not None and controller.part not in parts:
            raise ConfigError(
                f"controller.part={controller.part} is not a part; the partitioner makes {', '.join(parts)}"
            )
        least, most = controller.least, controller.most
        self.setting.check(least=least, most=most)
        first = controller.start(self.setting.value)
        if not least <= first <= most:
            raise ConfigError(
                f"{controller.drives} begins at {first:g}, outside controller.least={least:g} and "
                f"controller.most={most:g}: set one of the three, or controller.initial"
            )
        self.setting.set(first)
        self.entropy: float | None = None
        self._sums: list[Tensor] = []

    @property
    def name(self) -> str:
        """Such as `Target drives constraint.clip_high`."""
        return f"{type(self.controller).__name__} drives {self.controller.drives}"

    @property
    def value(self) -> float:
        """The number in force."""
        return self.setting.value

    @torch.no_grad()
    def observe(self, stats: TokenStats, plan: StepPlan) -> None:
        """Add a micro-batch; `plan` is its rows of the step's."""
        mask = plan.masks[self.controller.part or "response"]
        # where, not a product: a masked position may hold anything.
        entropy = torch.where(mask, stats.statistics["entropy"].double(), 0.0)
        self._sums.append(torch.stack([entropy.sum(), mask.sum().double()]))

    def advance(self, step: int, num_steps: int) -> None:
        """Measure the optimizer step just taken and set the number for the next. Every rank must call it.

        A step without tokens, or without a finite entropy, moves nothing.

        Args:
            step: optimizer steps taken so far.
            num_steps: of the whole run.
        """
        total, tokens = Step().sum(torch.stack(self._sums).sum(0)).tolist()
        self._sums = []
        if tokens and math.isfinite(total):
            self.entropy = total / tokens
            self.setting.set(self.controller(self.entropy, step, num_steps))

    def metrics(self) -> dict[str, float]:
        """The number in force, and the entropy last measured [nats]."""
        logged = {f"controller/{self.controller.drives}": self.value}
        return logged if self.entropy is None else {**logged, "controller/entropy": self.entropy}

    def state_dict(self) -> dict[str, Any]:
        """The controller's state, the number in force and the entropy last measured."""
        return {
            "name": self.name,
            "value": self.value,
            "entropy": self.entropy,
            "state": self.controller.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: it is the state of another controller.
        """
        if state["name"] != self.name:
            raise CheckpointError(
                f"in the checkpoint {state['name']}, but here {self.name}: a run keeps its controller"
            )
        self.controller.load_state_dict(state["state"])
        self.setting.set(state["value"])
        self.entropy = state["entropy"]
