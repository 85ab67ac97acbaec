"""The whole loss: partition, constrain, regularize, weigh, correct, aggregate.

    loss = sum over terms, sum over tokens of  value_t * weight_t

`plan` chooses tokens and counts them for the whole optimizer step, before its first micro-batch; the loss of a
micro-batch then adds up to the loss of the step however it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr_lightning.objective.composition import check_composition
from rlvr_lightning.objective.responses import count_responses, response_lengths
from rlvr_lightning.objective.statistics import Entropy, merge_statistics
from rlvr_lightning.protocols import (
    Aggregator,
    Component,
    ConstraintPolicy,
    Correction,
    LevelledCorrection,
    Regularizer,
    StepContext,
    TokenPartitioner,
    VocabStatistic,
    Weighting,
)
from rlvr_lightning.types import MaskCount, StepPlan, TokenStats, TokenTerm, When


@dataclass(frozen=True)
class LossOutput:
    """The loss of a micro-batch and its summands.

    Args:
        loss: with a graph, also where no token carries weight.
        terms: each summand, detached; they add up to the loss.
        clipped: tokens whose gradient the constraint cut off or a weighting took out, or None.
        factors: of the surrogate, by the weighting's name.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    clipped: Bool[Tensor, "B T"] | None
    factors: dict[str, Float[Tensor, "B T"]] = field(default_factory=dict)


class Objective:
    """The loss as a composition.

    Args:
        partitioner: splits tokens into parts.
        constraint: surrogate and KL per part.
        regularizers: further summands, by the name they are logged under.
        aggregator: token terms to one number.
        correction: weighs the surrogate for the gap between engine and trainer; None leaves it as it is.
        weightings: factors of the surrogate, by the name they are logged under.

    Raises:
        ConfigError: the components do not fit together.
    """

    def __init__(
        self,
        partitioner: TokenPartitioner,
        constraint: ConstraintPolicy,
        regularizers: Mapping[str, Regularizer],
        aggregator: Aggregator,
        correction: Correction | None = None,
        weightings: Mapping[str, Weighting] | None = None,
    ) -> None:
        self.partitioner, self.constraint, self.aggregator = partitioner, constraint, aggregator
        self.regularizers, self.correction, self.weightings = dict(regularizers), correction, dict(weightings or {})
        # Set where a driven coefficient is 0 now and will not stay so.
        self.always_ref = False
        # Set where what is remembered of the rollout's policy depends on a driven number.
        self.always_on_policy: tuple[str, ...] = ()
        check_composition(partitioner, constraint, self.regularizers, correction, self.weightings)
        constraint.bind(partitioner.parts)

    @property
    def _components(self) -> Sequence[Component]:
        return (self.partitioner, self.constraint, *self.regularizers.values(), *self.weightings.values())

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """Statistics to compute; the entropy always is, for the logs."""
        return merge_statistics([Entropy(), *(s for part in self._components for s in part.requires)])

    @property
    def requires_ref(self) -> bool:
        """Whether reference log-probabilities are needed."""
        return self.always_ref or any(part.requires_ref for part in self._components)

    @property
    def on_policy_only(self) -> tuple[str, ...]:
        """What makes sense only with one optimizer step a rollout phase, by name."""
        kinds = [type(part).__name__ for part in self._components if part.on_policy_only]
        return (*kinds, *self.always_on_policy)

    @property
    def plans_on(self) -> When | None:
        """The latest policy any component's choice of tokens depends on."""
        times = {part.plans_on for part in self._components}
        return "update" if "update" in times else "rollout" if "rollout" in times else None

    @property
    def within_responses(self) -> bool:
        """Whether a micro-batch's plan needs nothing of the others but `count`."""
        return all(part.within_responses for part in self._components)

    @property
    def weighs_by_step(self) -> bool:
        """Whether every token's weight depends on all tokens of the step."""
        return any(part.weighs_by_step for part in self._components)

    @property
    def per_response(self) -> bool:
        """Whether a token's term depends on the other tokens of its response."""
        levelled = isinstance(self.correction, LevelledCorrection) and self.correction.per_response
        return self.constraint.per_response or levelled

    def count(
        self, masks: Sequence[tuple[Bool[Tensor, "_ _"], Int[Tensor, "_ _"] | None]], step: StepContext
    ) -> MaskCount:
        """Tokens and responses of the step that carry weight, from the masks and segments of this rank's micro-batches."""
        own = torch.stack([torch.stack([mask.sum(), count_responses(mask, segments)]) for mask, segments in masks])
        tokens, responses = step.sum(own.sum(0).to(torch.float64))
        return MaskCount(tokens, responses)

    def plan(self, stats: TokenStats, step: StepContext, known: MaskCount | None = None) -> StepPlan:
        """Everything that is chosen for the step, from this rank's rows of it and what `step` knows of the others.

        Args:
            stats: of the whole step; where the choice is made within responses, of any part of it.
            step: the other ranks.
            known: of the whole step, where `stats` are a part of it.
        """
        stats = stats.detached()
        part_ids = self.partitioner(stats, step)
        masks = {"response": stats.loss_mask}
        for index, part in enumerate(self.partitioner.parts):
            masks[part] = stats.loss_mask & (part_ids == index)
        choices = {"constraint": self.constraint.plan(stats, part_ids, step)}
        for name, regularizer in self.regularizers.items():
            choices[name] = regularizer.plan(stats, part_ids, step)
            # Of a mask and of marks, 1 are the tokens the regularizer acts on.
            if choices[name].dtype == torch.bool or regularizer.marks:
                masks[name] = (choices[name] == 1) & stats.loss_mask
        for name, weighting in self.weightings.items():
            choices[_weighting(name)] = weighting.plan(stats, part_ids, step)
        if known is not None:
            return StepPlan(part_ids, choices, masks, {"response": known})
        responses = count_responses(stats.loss_mask, stats.segments)
        totals = step.sum(torch.stack([responses, *(mask.sum() for mask in masks.values())]).to(torch.float64))
        counts = {name: MaskCount(total, totals[0]) for name, total in zip(masks, totals[1:], strict=True)}
        return StepPlan(part_ids, choices, masks, counts)

    def __call__(self, stats: TokenStats, plan: StepPlan) -> LossOutput:
        """This micro-batch's share of the step's loss."""
        values, clipped, factors = self._terms(stats, plan)
        loss = torch.stack(list(values.values())).sum()
        terms = {name: value.detach() for name, value in values.items()}
        return LossOutput(loss, terms, _cut_off(clipped, factors), factors)

    def parts(self, stats: TokenStats, plan: StepPlan) -> dict[str, Float[Tensor, ""]]:
        """The summands of the loss, each with its graph."""
        return self._terms(stats, plan)[0]

    def _terms(
        self, stats: TokenStats, plan: StepPlan
    ) -> tuple[dict[str, Tensor], Bool[Tensor, "B T"] | None, dict[str, Tensor]]:
        """Summands, tokens that the constraint clipped, and the weightings' factors."""
        surrogate, *others = self.constraint(stats, plan.part_ids, plan.choices["constraint"])
        for name, regularizer in self.regularizers.items():
            main, *further = regularizer(stats, plan.part_ids, plan.choices[name])
            # Under the name it has in this run: there may be two of a kind.
            others += [replace(main, name=name), *(replace(term, name=f"{name}/{term.name}") for term in further)]
        replaced = [term.replaces for term in others if term.replaces is not None]
        taken = torch.stack(replaced).any(0) if replaced else torch.zeros_like(stats.loss_mask)
        factors = {
            name: weighting(stats, plan.part_ids, plan.choices[_weighting(name)])
            for name, weighting in self.weightings.items()
        }
        weights = self._weights(stats, factors)
        values = {"surrogate": self._aggregate(surrogate, stats, plan, keep=~taken, weights=weights)}
        for term in others:
            if term.replaces is None:
                values[term.name] = self._aggregate(term, stats, plan)
            else:  # it is the surrogate of its tokens: over the same set, with the same weights
                values[term.name] = self._aggregate(replace(term, over=surrogate.over), stats, plan, weights=weights)
        assert len(values) == 1 + len(others), "two terms of one name"
        return values, surrogate.clipped, factors

    def _weights(self, stats: TokenStats, factors: Mapping[str, Tensor]) -> Float[Tensor, "B T"] | None:
        """Of the surrogate: the product of all factors and the correction."""
        weights = [*factors.values(), *([] if self.correction is None else [self.correction(stats)])]
        return torch.stack(weights).prod(0) if weights else None

    def _aggregate(
        self,
        term: TokenTerm,
        stats: TokenStats,
        plan: StepPlan,
        *,
        keep: Bool[Tensor, "B T"] | None = None,
        weights: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        mask = plan.masks[term.over]
        assert term.over in plan.counts, (
            f"{term.name} is averaged over {term.over}: its component is not within_responses"
        )
        lengths = response_lengths(mask, stats.segments)
        shares = self.aggregator(mask, lengths, plan.counts[term.over]).to(term.values.dtype)
        values = term.values if weights is None else term.values * weights
        # where, not a product: a masked position may hold anything, and 0 * inf is not 0.
        return (torch.where(mask if keep is None else mask & keep, values, 0.0) * shares).sum()


def _weighting(name: str) -> str:
    """The key of a weighting's choice; a regularizer may have the same name."""
    return f"weighting.{name}"


def _cut_off(clipped: Bool[Tensor, "B T"] | None, factors: Mapping[str, Tensor]) -> Bool[Tensor, "B T"] | None:
    """Tokens without a gradient, whoever took it."""
    taken = [factor == 0 for factor in factors.values()]
    held = taken if clipped is None else [clipped, *taken]
    return torch.stack(held).any(0) if held else None
