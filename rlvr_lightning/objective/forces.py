"""How strongly each term of the loss pulls at the logits of the tokens a regularizer has chosen: what a method does, rather than what it
is called.

The gradient of a term with respect to the logits of a token is put together from the same closed forms that are trained with, in a pass
of its own over the chosen tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.tile import ClosedStatistic, LogitGradient, Tile, add_by_autograd, add_logprob
from rlvr_lightning.protocols import PolicyModel, VocabStatistic
from rlvr_lightning.types import Pass, StepPlan, TokenBatch, TokenStats

LOGPROBS = "logprobs"


@dataclass(frozen=True)
class Force:
    """Of two terms on the chosen tokens, C of them.

    Args:
        surrogate: size of the policy gradient with respect to a token's logits (Euclidean), and its part at the sampled token.
        term: the same of the regularizer's.
    """

    surrogate: Float[Tensor, "C 2"]
    term: Float[Tensor, "C 2"]


@dataclass(frozen=True)
class LogitForces(ClosedStatistic):
    """Size of each term's gradient with respect to a token's logits, and its part at the sampled token's.

    Args:
        terms: names of the terms.
        statistics: what they depend on besides the log-probability. How the loss changes with each of them is read from the old
            statistics, under `at(term, statistic)`.
    """

    terms: tuple[str, ...]
    statistics: tuple[VocabStatistic, ...]
    differentiable: ClassVar[bool] = False
    name: ClassVar[str] = "logit_forces"
    passes: ClassVar[tuple[Pass, ...]] = ("update", "on_policy")

    def value(self, tile: Tile) -> Float[Tensor, "N K 2"]:
        """Of each of K terms."""
        return torch.stack([self._of(term, tile) for term in self.terms], dim=1)

    def _of(self, term: str, tile: Tile) -> Float[Tensor, "N 2"]:
        into = LogitGradient(tile)
        add_logprob(tile, tile.old[at(term, LOGPROBS)], into)
        for statistic in self.statistics:
            grad = tile.old[at(term, statistic.name)]
            if isinstance(statistic, ClosedStatistic):
                statistic.gradient(tile, grad, into)
            else:
                add_by_autograd(statistic, tile, grad, into)
        out = torch.empty_like(tile.logprobs)
        into.write(out)
        sampled = out.gather(-1, tile.token_ids.unsqueeze(-1)).squeeze(-1)
        return torch.stack([torch.linalg.vector_norm(out, dim=-1), sampled], dim=-1)


def at(term: str, statistic: str) -> str:
    """Where a term's derivative with respect to a statistic stands."""
    return f"force({term},{statistic})"


def forces(
    objective: Objective,
    policy: PolicyModel,
    micro: TokenBatch,
    stats: TokenStats,
    plan: StepPlan,
    temperature: float,
    statistics: Sequence[VocabStatistic],
) -> dict[str, Force]:
    """Of every regularizer that chooses tokens, on those it has chosen. Under a sharded strategy every rank must call it.

    Args:
        objective: whose terms are measured.
        policy: makes the logits once more.
        micro: a micro-batch.
        stats: of it.
        plan: of it.
        temperature: divides the logits.
        statistics: that `stats` were made of.
    """
    chosen = {name: plan.masks[name] for name in objective.regularizers if name in plan.masks}
    if not chosen:
        return {}
    terms = ("surrogate", *chosen)
    differentiable = tuple(statistic for statistic in statistics if statistic.differentiable)
    derivatives = _derivatives(objective, stats, plan, terms, differentiable)
    anywhere = torch.stack(list(chosen.values())).any(0) & micro.loss_mask
    asked = replace(micro, loss_mask=anywhere, old_statistics={**micro.old_statistics, **derivatives})
    with torch.no_grad():
        _, found = policy(asked, temperature, (LogitForces(terms, differentiable),))
    sizes = found[LogitForces.name]
    return {
        name: Force(sizes[mask & anywhere][:, 0], sizes[mask & anywhere][:, 1 + place])
        for place, (name, mask) in enumerate(chosen.items())
    }


def _derivatives(
    objective: Objective,
    stats: TokenStats,
    plan: StepPlan,
    terms: Sequence[str],
    statistics: Sequence[VocabStatistic],
) -> dict[str, Shaped[Tensor, "B T"]]:
    """How each term changes with the log-probabilities and with each statistic, token by token."""
    with torch.enable_grad():
        leaves = {LOGPROBS: stats.logprobs.detach().clone().requires_grad_()}
        for statistic in statistics:
            leaves[statistic.name] = stats.statistics[statistic.name].detach().clone().requires_grad_()
        named: Mapping[str, Tensor] = {
            **stats.statistics,
            **{name: leaf for name, leaf in leaves.items() if name != LOGPROBS},
        }
        parts = objective.parts(replace(stats, logprobs=leaves[LOGPROBS], statistics=named), plan)
        found: dict[str, Tensor] = {}
        for term in terms:
            # What takes the place of single tokens' surrogate is their policy gradient.
            names = [name for name in parts if name == term or (term == "surrogate" and name.endswith("/surrogate"))]
            total = torch.stack([parts[name] for name in names]).sum()
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
                found[at(term, name)] = torch.zeros_like(leaf) if grad is None else grad
    return found
