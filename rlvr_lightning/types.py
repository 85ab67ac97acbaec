"""The values that flow through a run, in pipeline order.

Dimension legend: P prompts, G responses a prompt (`group_size`), B rows (responses), L prompt + response tokens,
T response tokens, V vocabulary. Floats are float32 in training and float64 in the tests; probabilities are natural
logarithms (nats) wherever a name says `logprobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Message = dict[str, str]
When = Literal["rollout", "update"]
# Forward passes: of the policy at the start of an off-policy update, of the current one then, of both at once.
Pass = Literal["rollout", "update", "on_policy"]


@dataclass(frozen=True)
class Problem:
    """One row of a task: what is asked and what a right answer is.

    Args:
        id: unique within its task.
        messages: the conversation so far, for the model's chat template.
        answer: the gold answer a verifier compares with.
        meta: anything else the row holds (difficulty, source).
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A problem as the model sees it.

    Args:
        problem: what is asked.
        token_ids: the chat template applied and tokenised, generation prompt included.
        index: position in the run's endless prompt order; with the seed it fixes the sampling seeds.
    """

    problem: Problem
    token_ids: tuple[int, ...]
    index: int


@dataclass(frozen=True)
class SamplingSpec:
    """How responses are drawn.

    Args:
        temperature: divides the logits, in sampling and in scoring alike; above 0.
        max_new_tokens: tokens at most in a response, the end-of-sequence token included.
        stop_token_ids: a response ends with (and includes) the first of these.
    """

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationRequest:
    """One response to draw: the prompt's tokens and the seed of its random numbers."""

    token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Generation:
    """One drawn response.

    Args:
        token_ids: the response, its stop token included when it ended by one.
        logprobs: log-probability of each token under the engine's policy at the sampling temperature [nats].
        finish_reason: `stop` (ended by itself) or `length` (cut at `max_new_tokens`).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Args:
        reward: the verifiable reward, usually 0 or 1.
        correct: whether it counts as right in accuracies.
        extracted: the answer found in the response, for people to read.
    """

    reward: float
    correct: bool
    extracted: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One response with everything known about it before the update.

    `verdict` is None where the verifier failed; `error` then says how, and the response carries no weight.
    """

    prompt: Prompt
    sample: int
    generation: Generation
    text: str
    policy_version: int
    verdict: Verdict | None = None
    error: str | None = None


@dataclass(frozen=True)
class TokenBatch:
    """Rows of one optimizer step (or a micro-batch of it): prompts padded on the left, responses on the right.

    Token t of a response stands at column L - T + t of `input_ids`.

    Args:
        input_ids: prompt and response tokens.
        attention_mask: 1 at real tokens.
        loss_mask: response tokens that carry weight; all False in a row that was dropped.
        advantages: of the response, broadcast over its tokens.
        rollout_logprobs: of the sampled tokens under the engine's policy [nats].
        old_logprobs: under the policy at the start of the update [nats]; None when the update is on-policy.
        ref_logprobs: under the frozen reference [nats]; None when no component needs them.
        old_statistics: vocabulary statistics under the policy at the start of the update, by name; some have several
            numbers a token.
        noise: a uniform random number in [0, 1) for each token, made from the run's seed, the prompt and the sample:
            choosing at random then does not depend on how a step is cut. None where no one draws.
        segments: in a packed batch, which response of its row a token belongs to; None where a row is one response.
    """

    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    loss_mask: Bool[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    rollout_logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    old_statistics: dict[str, Shaped[Tensor, "B T ..."]] = field(default_factory=dict)
    noise: Float[Tensor, "B T"] | None = None
    segments: Int[Tensor, "B T"] | None = None

    @property
    def num_rows(self) -> int:
        """B, dropped rows included."""
        return self.input_ids.shape[0]

    @property
    def response_ids(self) -> Int[Tensor, "B T"]:
        """The response part of `input_ids`."""
        return self.input_ids[:, -self.loss_mask.shape[1] :]

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        """A batch with `function` applied to every tensor (moving to a device, taking rows)."""
        changes: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = function(value)
            elif isinstance(value, dict):
                changes[item.name] = {key: function(tensor) for key, tensor in value.items()}
        return replace(self, **changes)

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Rows `start` to `stop`."""
        return self.map(lambda tensor: tensor[start:stop])

    def split(self, size: int) -> Iterator[tuple[slice, TokenBatch]]:
        """Micro-batches of at most `size` rows, with the rows they hold."""
        for start in range(0, self.num_rows, size):
            rows = slice(start, min(start + size, self.num_rows))
            yield rows, self.rows(rows.start, rows.stop)


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
        old_statistics: the same under the policy at the start of the update.
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

    def rows(self, rows: slice) -> StepPlan:
        """The plan for a micro-batch: rows are taken, counts stay those of the whole step."""
        return replace(
            self,
            part_ids=self.part_ids[rows],
            choices={key: value[rows] for key, value in self.choices.items()},
            masks={key: value[rows] for key, value in self.masks.items()},
        )
