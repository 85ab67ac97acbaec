"""From a problem to a graded response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# How judging a response ended: right, not right, without an answer to judge, without a verdict in time, or by a failure.
VerdictKind = Literal["correct", "wrong", "unparsable", "timeout", "error"]
VERDICT_KINDS: tuple[VerdictKind, ...] = ("correct", "wrong", "unparsable", "timeout", "error")

Message = dict[str, str]


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
        temperature: divides the logits, in sampling and in scoring alike; 0 takes the most probable token, which is for
            measuring alone.
        max_new_tokens: tokens at most in a response, the end-of-sequence token included.
        stop_token_ids: a response ends with (and includes) the first of these.
        top_p: only the most probable tokens that together reach this probability are drawn from; training's is 1.
    """

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0


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
        logprobs: log-probability of each token in the distribution it was drawn from, under the engine's policy [nats].
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
        kind: None means `correct` or `wrong`, as `correct` says.
        parts: the rewards of the verifiers this one is made of, by name.
    """

    reward: float
    correct: bool
    extracted: str | None = None
    kind: VerdictKind | None = None
    parts: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Rollout:
    """One response with everything known about it before the update.

    Args:
        prompt: what was asked.
        sample: which of the prompt's responses it is.
        generation: as drawn.
        text: decoded.
        policy_version: optimizer steps of the policy it was drawn from.
        verdict: None until it is judged, and where the way judging ended is worth no verdict: it carries no weight then.
        error: what went wrong where judging ended by `timeout` or `error`.
        kind: how judging ended; None until it is judged.
    """

    prompt: Prompt
    sample: int
    generation: Generation
    text: str
    policy_version: int
    verdict: Verdict | None = None
    error: str | None = None
    kind: VerdictKind | None = None
