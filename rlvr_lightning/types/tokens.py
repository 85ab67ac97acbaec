"""What the objective knows of each token, and what it makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

When = Literal["rollout", "update"]
# Forward passes: of the policy at the start of an off-policy update, of the current one then, of both at once; of the frozen reference.
Pass = Literal["rollout", "update", "on_policy", "reference"]


@dataclass(frozen=True)
class PolicyView:
    """What one policy says of the sampled tokens."""

    logprobs: Float[Tensor, "B T"]
    statistics: Mapping[str, Shaped[Tensor, "B T ..."]]


@dataclass(frozen=True)
class TokenStats:
    """What the objective knows of each response token. Only `logprobs` and `statistics` can carry a gradient.

    Args:
        logprobs: of the sampled token under the current policy, at the sampling temperature [nats].
        old_logprobs: under the policy at the start of the update [nats].
        advantages: of the response, broadcast over its tokens.
        loss_mask: tokens that carry weight.
        rollout_logprobs: under the policy the engine sampled from [nats].
        ref_logprobs: under the frozen reference [nats], or None when nobody requires them.
        statistics: values per token named by the components' `requires`, under the current policy.
        old_statistics: the same under the policy at the start of the update; and those of the reference, under names of their own.
        noise: a uniform random number in [0, 1) for each token, or None.
        segments: in a packed batch, which response of its row a token belongs to (`objective/responses.py` reduces over it).
    """

    logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    rollout_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    statistics: Mapping[str, Shaped[Tensor, "B T ..."]] = field(default_factory=dict)
    old_statistics: Mapping[str, Shaped[Tensor, "B T ..."]] = field(default_factory=dict)
    noise: Float[Tensor, "B T"] | None = None
    segments: Int[Tensor, "B T"] | None = None

    def at(self, when: When) -> PolicyView:
        """The numbers of one policy: at the start of the update (`rollout`) or of the current one (`update`)."""
        if when == "rollout":
            return PolicyView(self.old_logprobs, self.old_statistics)
        return PolicyView(self.logprobs, self.statistics)

    def detached(self) -> TokenStats:
        """The same numbers without a gradient, for choosing tokens."""
        statistics = {key: value.detach() for key, value in self.statistics.items()}
        return replace(self, logprobs=self.logprobs.detach(), statistics=statistics)


@dataclass(frozen=True)
class TokenTerm:
    """One summand of the loss, per token and not yet aggregated.

    Args:
        name: how it is logged; a regularizer's first term is logged under the regularizer's name.
        values: the loss of each token.
        over: the tokens it is averaged over: `response` (all), a part's name, or a component's own choice. The
            denominator is that set's count in the whole optimizer step.
        replaces: tokens whose surrogate this term takes the place of, or None; it is then averaged as the surrogate is.
        clipped: tokens whose gradient was cut off, for the logs; None where the term has no such thing.
    """

    name: str
    values: Float[Tensor, "B T"]
    over: str = "response"
    replaces: Bool[Tensor, "B T"] | None = None
    clipped: Bool[Tensor, "B T"] | None = None


@dataclass(frozen=True)
class MaskCount:
    """Size of a token set in the whole optimizer step, over all ranks.

    Args:
        tokens: tokens in the set.
        rows: responses that carry weight (those with at least one token in `response`).
    """

    tokens: Float[Tensor, ""]
    rows: Float[Tensor, ""]


@dataclass(frozen=True)
class StepPlan:
    """All that is chosen for an optimizer step before its first micro-batch.

    Args:
        part_ids: the part each token belongs to.
        choices: per component (by its key), the tensor its `plan` returned.
        masks: token sets a term can be averaged over, by name.
        counts: their sizes in the whole step.
    """

    part_ids: Int[Tensor, "B T"]
    choices: Mapping[str, Tensor]
    masks: Mapping[str, Bool[Tensor, "B T"]]
    counts: Mapping[str, MaskCount]
