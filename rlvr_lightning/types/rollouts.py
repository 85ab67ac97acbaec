"""From a problem to a graded response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
class Probe:
    """What is watched of the policy while it learns: how probable a token is at some place of a response.

    Args:
        name: what it is logged under.
        prefix: of the response, what stands before the token.
        token: a text of exactly one token.
    """

    name: str
    prefix: str
    token: str


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
        exact_seeds: each response is drawn with its own request's seed, and so the same whatever is drawn beside it.
    """

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0
    exact_seeds: bool = True


@dataclass(frozen=True)
class GenerationRequest:
    """One response to draw: the prompt's tokens and the seed of its random numbers."""

    token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Generation:
    """What an engine drew for one request: a turn of the policy.

    Args:
        token_ids: the turn, its stop token included when it ended by one.
        logprobs: log-probability of each token in the distribution it was drawn from, under the engine's policy [nats].
        finish_reason: `stop` (ended by itself) or `length` (cut at `max_new_tokens`).
        policy_version: optimizer steps of the weights it was drawn with; of the oldest, where they changed meanwhile.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    policy_version: int


@dataclass(frozen=True)
class Episode:
    """What follows a prompt: one or more turns of the policy, and between them what others answered.

    Tokens are appended as they were drawn or given and never tokenised again: what is scored is what was seen.

    Args:
        token_ids: all turns, one after another.
        written: the tokens that the policy wrote; no other one is learned from.
        logprobs: of the tokens that the policy wrote, under the engine's policy [nats]; 0 elsewhere.
        finish_reason: how the policy's last turn ended.
        policy_version: optimizer steps of the oldest weights that any of it was drawn with.
    """

    token_ids: tuple[int, ...]
    written: tuple[bool, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    policy_version: int

    @classmethod
    def of(cls, turn: Generation) -> Episode:
        """The episode of a single turn."""
        written = (True,) * len(turn.token_ids)
        return cls(turn.token_ids, written, turn.logprobs, turn.finish_reason, turn.policy_version)

    def answered(self, token_ids: tuple[int, ...]) -> Episode:
        """With what another than the policy adds."""
        nothing = len(token_ids)
        return replace(
            self,
            token_ids=self.token_ids + token_ids,
            written=self.written + (False,) * nothing,
            logprobs=self.logprobs + (0.0,) * nothing,
        )

    def continued(self, turn: Generation) -> Episode:
        """With the policy's next turn."""
        return Episode(
            self.token_ids + turn.token_ids,
            self.written + (True,) * len(turn.token_ids),
            self.logprobs + turn.logprobs,
            turn.finish_reason,
            min(self.policy_version, turn.policy_version),
        )

    @property
    def num_written(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.written)


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
    """One response (an episode) with everything known about it before the update.

    Args:
        prompt: what was asked.
        sample: which of the prompt's responses it is.
        episode: its tokens.
        text: what the policy wrote, decoded: what is judged.
        verdict: None until it is judged, and where the way judging ended is worth no verdict: it carries no weight then.
        error: what went wrong where judging ended by `timeout` or `error`.
        kind: how judging ended; None until it is judged.
    """

    prompt: Prompt
    sample: int
    episode: Episode
    text: str
    verdict: Verdict | None = None
    error: str | None = None
    kind: VerdictKind | None = None

    @property
    def policy_version(self) -> int:
        """Optimizer steps of the policy it was drawn from."""
        return self.episode.policy_version
