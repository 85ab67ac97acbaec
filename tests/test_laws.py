"""Laws 1 and 2 for every component: how a step is cut changes nothing, and what is masked does not exist."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import AGGREGATORS, MEAN, OBJECTIVES, Case, arrange, loss_of, random_case, stats_of
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.methods.advantages.rloo import RLOO
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import ConstraintPolicy, Regularizer, TokenPartitioner, Weighting

WHOLE = [slice(0, 16)]


def case_for(name: str, seed: int, rows: int = 16) -> Case:
    return random_case(seed, rows, on_policy="opefo" in name)


def gradient_of(loss: Tensor, case: Case) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, case.logits)
    return gradient


def cut(size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, 16, size)]


def ragged(bounds: list[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(sorted({0, 16, *bounds}))]


def packed(case: Case, order: Tensor, extra: int) -> Case:
    """Four responses a row, one after the other without gaps, padded at the end."""
    rows, width = [], 4 * case.mask.shape[1] + extra
    for start in range(0, 16, 4):
        places: list[tuple[int, int]] = []
        for segment, row in enumerate(order[start : start + 4].tolist()):
            columns = case.mask[row].nonzero().flatten().tolist()
            places += [(row * case.mask.shape[1] + column, segment) for column in columns]
        rows.append(places + [(-1, 3)] * (width - len(places)))
    table = torch.tensor(rows)
    return arrange(case, table[..., 0], table[..., 1])


def padded(case: Case, order: Tensor, extra: int) -> Case:
    places = torch.arange(case.mask.numel()).view(case.mask.shape)[order]
    return arrange(case, torch.cat([places, torch.full((16, extra), -1)], dim=1))


@pytest.mark.parametrize("aggregator", sorted(AGGREGATORS))
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@given(seed=st.integers(0, 10_000), bounds=st.lists(st.integers(1, 15), max_size=5), extra=st.integers(0, 3))
@settings(max_examples=3, deadline=None)
def test_loss_and_gradient_do_not_depend_on_how_the_step_is_cut(
    name: str, aggregator: str, seed: int, bounds: list[int], extra: int
) -> None:
    objective, case = OBJECTIVES[name](AGGREGATORS[aggregator]), case_for(name, seed)
    whole = loss_of(objective, case, WHOLE, Step())
    gradient = gradient_of(whole, case)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    ways: dict[str, tuple[Case, list[slice]]] = {
        "16 x 1": (case, cut(1)),
        "8 x 2": (case, cut(2)),
        "4 x 4": (case, cut(4)),
        "ragged": (case, ragged(bounds)),
        "permuted, padded, ragged": (padded(case, order, extra), ragged(bounds)),
        "packed": (packed(case, order, extra), [slice(0, 4)]),
        "packed, cut": (packed(case, order, extra), [slice(0, 1), slice(1, 4)]),
    }
    for way, (arranged, cuts) in ways.items():
        loss = loss_of(objective, arranged, cuts, Step())
        assert math.isclose(float(loss.detach()), float(whole.detach()), rel_tol=1e-9, abs_tol=1e-9), way
        difference = (gradient_of(loss, case) - gradient).abs().max()
        assert difference <= 1e-9, (way, float(difference))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_settings_of_the_catalogue_bite(name: str) -> None:
    """The property would hold for a component that does nothing: each must change some token of some case."""
    objective = OBJECTIVES[name](MEAN)
    chosen, clipped, terms = 0, 0, dict.fromkeys(objective.regularizers, 0.0)
    weighed = dict.fromkeys(objective.weightings, 0.0)
    for seed in range(5):
        case = case_for(name, seed)
        stats = stats_of(objective, case)
        plan = objective.plan(stats, Step())
        output = objective(stats, plan)
        clipped += 0 if output.clipped is None else int((output.clipped & case.mask).sum())
        terms = {key: value + abs(float(output.terms[key])) for key, value in terms.items()}
        weighed = {key: held + float((output.factors[key] - 1)[case.mask].abs().sum()) for key, held in weighed.items()}
        chosen += min(int(plan.masks[part].sum()) for part in objective.partitioner.parts)
    assert chosen > 0
    assert all(value > 1e-3 for value in (*terms.values(), *weighed.values())), (terms, weighed)
    if type(objective.constraint).__name__ not in ("SAPO", "OPEFO") and name != "kl_cov":
        assert clipped > 0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_empty_step_is_zero_with_a_graph(name: str) -> None:
    objective, case = OBJECTIVES[name](MEAN), case_for(name, 3)
    nothing = arrange(case, torch.full((16, 6), -1))
    loss = loss_of(objective, nothing, WHOLE, Step())
    assert float(loss.detach()) == 0
    assert gradient_of(loss, case).abs().max() == 0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_masked_tokens_and_other_responses_have_no_gradient(name: str) -> None:
    objective, case = OBJECTIVES[name](MEAN), case_for(name, 8)
    gradient = gradient_of(loss_of(objective, case, WHOLE, Step()), case)
    assert gradient[~case.mask].abs().max() == 0
    assert gradient[case.mask].abs().max() > 1e-4
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    terms = [*objective.constraint(stats, plan.part_ids, plan.choices["constraint"])]
    for key, regularizer in objective.regularizers.items():
        terms += regularizer(stats, plan.part_ids, plan.choices[key])
    for term in terms:
        values = torch.where(case.mask, term.values, 0.0)[4].sum()
        (own,) = torch.autograd.grad(values, case.logits, retain_graph=True)
        own[4] = 0
        assert own.abs().max() == 0, term.name


ESTIMATORS = {"grpo": GroupRelative(), "dr_grpo": GroupRelative(normalize=False), "rloo": RLOO()}


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_advantages_follow_their_responses(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(3, (6, 5), generator=generator).double() / 2
    valid = torch.rand(6, 5, generator=generator) < 0.8
    estimator = ESTIMATORS[name]
    found = estimator(rewards, valid)
    groups, members = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    moved = estimator(rewards[groups][:, members], valid[groups][:, members])
    torch.testing.assert_close(moved, found[groups][:, members], rtol=1e-12, atol=1e-12)
    # A response without a verdict changes nothing, whatever stands in its place.
    rubbish = torch.full((6, 1), 1e9, dtype=torch.float64)
    wider = estimator(torch.cat([rewards, rubbish], 1), torch.cat([valid, torch.zeros(6, 1).bool()], 1))
    torch.testing.assert_close(wider[:, :5], found, rtol=1e-12, atol=1e-12)
    for row, mask, advantages in zip(rewards, valid, found, strict=True):
        assert (advantages.abs().max() == 0) == (row[mask].unique().numel() < 2)
        assert advantages[~mask].abs().sum() == 0


class Frozen(TorchFunctionMode):
    """Stop-gradients as constants: the first evaluation's detached values are given again in the next ones."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.turn: int | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.Tensor.detach:
            return result
        if self.turn is None:
            self.values.append(result.clone())
            return result
        self.turn += 1
        return self.values[self.turn - 1]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_gradient_is_the_finite_difference(name: str) -> None:
    objective, case = OBJECTIVES[name](MEAN), random_case(5, rows=5, length=4, vocabulary=5, on_policy="opefo" in name)
    plan = objective.plan(stats_of(objective, case), Step())
    frozen = Frozen()

    def loss(moved: Case) -> Tensor:
        with frozen:
            return objective(stats_of(objective, moved), plan).loss

    gradient = gradient_of(loss(case), case)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        direction = torch.randn(case.logits.shape, generator=generator, dtype=torch.float64)
        sides = []
        for step in (1e-6, -1e-6):
            frozen.turn = 0
            moved = Case(**{**case.__dict__, "logits": (case.logits + step * direction).detach().requires_grad_()})
            sides.append(float(loss(moved).detach()))
        slope = float((gradient * direction).sum())
        assert math.isclose((sides[0] - sides[1]) / 2e-6, slope, rel_tol=2e-6, abs_tol=1e-8)


def components() -> set[type]:
    """Every concrete component of the package."""
    found: set[type] = set()
    roles = {TokenPartitioner, ConstraintPolicy, Regularizer, Weighting}
    for package in ("partitioners", "constraints", "regularizers", "corrections", "weightings"):
        folder = importlib.import_module(f"rlvr_lightning.methods.{package}")
        for item in pkgutil.iter_modules(folder.__path__):
            module = importlib.import_module(f"rlvr_lightning.methods.{package}.{item.name}")
            for _, kind in inspect.getmembers(module, inspect.isclass):
                own = kind.__module__ == module.__name__ and not inspect.isabstract(kind)
                if own and (roles & set(kind.__mro__) or package == "corrections"):
                    found.add(kind)
    aggregators = importlib.import_module("rlvr_lightning.methods.aggregators")
    found |= {
        kind for _, kind in inspect.getmembers(aggregators, inspect.isclass) if kind.__module__ == aggregators.__name__
    }
    return {kind for kind in found if not kind.__name__.startswith("PerPart")}


def test_the_catalogue_holds_every_component() -> None:
    seen: set[type] = {type(aggregator) for aggregator in AGGREGATORS.values()}
    for build in OBJECTIVES.values():
        objective = build(MEAN)
        parts: list[object] = [objective.partitioner, objective.constraint, *objective.regularizers.values()]
        parts += [inner for part in parts if isinstance(inner := getattr(part, "constraint", None), ConstraintPolicy)]
        parts += [objective.correction, *objective.weightings.values()]
        seen |= {type(part) for part in parts if part is not None}
    assert len(components()) > 20
    assert components() - seen == set()
