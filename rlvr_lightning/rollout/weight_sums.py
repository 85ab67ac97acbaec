"""What a policy's weights add up to, compared with what an engine's do: which of them have not arrived.

An engine's weights have names of its own, some of them several of a checkpoint's tensors in one, and each of its workers may
hold a share. Sums survive all of that. They do not tell a permutation from the right order: the answers to fixed prompts do
(`canary.py`), which in turn hardly move when a single tensor is one step old.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlvr_lightning.protocols import TrainedModule

# Of a weight's sum, or of 1 where that is less: what the order of summing makes of the same numbers.
ADDED = 1e-9
# Of `Summed.rounding`: what it makes of a sum that the engine can only compute by using the weight (measured: 1.03 at most, in
# 340 sums of vLLM's float32 products).
COMPUTED = 4.0
SHOWN = 6
# Numbers that are added up at a time on a CPU, where a sum in another dtype is slow: a copy of them stays in the cache, and
# they are few enough for torch not to wake other threads.
BLOCK = 2**15


def total(weight: Tensor) -> Tensor:
    """The sum of a weight's numbers, in float64."""
    if weight.device.type != "cpu":
        return weight.sum(dtype=torch.float64)
    return torch.stack([block.double().sum() for block in torch.split(weight.reshape(-1), BLOCK)]).sum()


@dataclass(frozen=True)
class Summed:
    """What a weight adds up to.

    Args:
        total: the sum of its numbers.
        rounding: the size of the error of its product with ones, of which each sum of K numbers is rounded on its way:
            u sqrt(K) times the weight's norm, u the unit roundoff it is held with.
    """

    total: float
    rounding: float

    @classmethod
    def of(cls, total: float, norm: float, shape: Sequence[int], dtype: torch.dtype) -> Summed:
        """Of a weight of that norm, shape and dtype."""
        return cls(total, torch.finfo(dtype).eps / 2 * math.sqrt(shape[-1] if shape else 1) * norm)

    def __add__(self, other: Summed) -> Summed:
        return Summed(self.total + other.total, math.hypot(self.rounding, other.rounding))


class PolicyWeights:
    """The policy's weights, to be gone through as often as an engine likes; under a sharded strategy a collective.

    Args:
        module: whose policy it is.
        dtype: the engine holds them in.
        base: sums of the weights that the engine has read itself; then the adapters beside them are gone through alone.
    """

    def __init__(self, module: TrainedModule, dtype: torch.dtype, base: Mapping[str, Summed] | None = None) -> None:
        self._module, self._dtype, self._base = module, dtype, base
        self.sums: dict[str, Summed] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        policy, adder = self._module.policy, _Adder(self._dtype)
        for name, weight in policy.full_weights() if self._base is None else policy.adapter_weights():
            adder.add(name, weight)
            yield name, weight
        # Only of a pass to the end.
        self.sums = {**(self._base or {}), **adder.told()}


class _Adder:
    """Adds weights up, each for itself, and looks at the device once.

    Args:
        dtype: the engine holds them in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._found: dict[str, Tensor] = {}
        self._shapes: list[Sequence[int]] = []

    def add(self, name: str, weight: Tensor) -> None:
        """One more."""
        held = weight.detach().to(self._dtype)
        norm = torch.linalg.vector_norm(held, dtype=torch.float32).double()
        self._found[name] = torch.stack([total(held), norm])
        self._shapes.append(weight.shape)

    def told(self) -> dict[str, Summed]:
        """The sums by their weights' names."""
        numbers = zip(self._found, torch.stack(list(self._found.values())).tolist(), self._shapes, strict=True)
        return {name: Summed.of(total, norm, shape, self._dtype) for name, (total, norm), shape in numbers}


def base_sums(module: TrainedModule, dtype: torch.dtype) -> dict[str, Summed]:
    """Sums of a policy's weights without its adapters; under a sharded strategy a collective."""
    adder = _Adder(dtype)
    for name, weight in module.policy.base_weights():
        adder.add(name, weight)
    return adder.told()


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Args:
        differ: weights that are not the policy's, by the engine's names.
        same: how many are.
        hidden: how many are held in a form that cannot be looked at.
    """

    differ: tuple[str, ...]
    same: int
    hidden: int

    def __str__(self) -> str:
        unseen = f"; {self.hidden} others are held in a form that cannot be looked at" if self.hidden else ""
        if not self.differ:
            return f"the {self.same} weights that can be looked at are the policy's{unseen}"
        more = f" and {len(self.differ) - SHOWN} more" if len(self.differ) > SHOWN else ""
        return f"suspect {', '.join(self.differ[:SHOWN])}{more}{unseen}"


def compare(expected: Mapping[str, Summed], workers: Sequence[Mapping[str, Any]]) -> Compared:
    """Compare a policy's sums with those of one copy in an engine.

    Args:
        expected: the policy's, by the checkpoint's names.
        workers: of each worker `sums`, by the engine's names, `computed`, which of them it had to use the weights for, and
            `packed`, which of a checkpoint's names it has made one of.
    """
    computed = {name for worker in workers for name in worker["computed"]}
    packed = {part: whole for whole, parts in workers[0]["packed"].items() for part in parts}
    merged: dict[str, Summed] = {}
    for name, value in expected.items():
        own = ".".join(packed.get(piece, piece) for piece in name.split("."))
        merged[own] = merged[own] + value if own in merged else value
    held = {name: [worker["sums"][name] for worker in workers if name in worker["sums"]] for name in merged}
    seen = {name: values for name, values in held.items() if values}
    differ = tuple(name for name, values in seen.items() if not _agree(merged[name], values, rounded=name in computed))
    return Compared(differ, len(seen) - len(differ), len(merged) - len(seen))


def _agree(expected: Summed, values: Sequence[float], *, rounded: bool) -> bool:
    """Of a weight that each worker has a share of, or all have alike."""
    allowed = ADDED * max(abs(expected.total), 1.0) + (COMPUTED * expected.rounding if rounded else 0.0)
    alike = all(abs(value - expected.total) <= allowed for value in values)
    return alike or abs(sum(values) - expected.total) <= allowed * len(values)
