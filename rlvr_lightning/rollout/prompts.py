"""From problems to an endless, seeded order of prompts."""

from __future__ import annotations

import hashlib
import logging
import random
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rlvr_lightning.errors import DataError
from rlvr_lightning.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompts tokenised at a time: a tokenizer is faster with many, and holds a lot for each until the last is done.
AT_ONCE = 1_000

log = logging.getLogger(__name__)


def derived_seed(*parts: object) -> int:
    """A seed of 31 bits from the run's seed and what it is for: stable over processes and machines."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def tokenize(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, ...]]:
    """Each problem's messages through the chat template; without one, their contents line by line."""
    for start in range(0, len(problems), AT_ONCE):
        some = [[dict(message) for message in problem.messages] for problem in problems[start : start + AT_ONCE]]
        if tokenizer.chat_template:
            texts = tokenizer.apply_chat_template(some, add_generation_prompt=True, tokenize=False)
        else:
            texts = ["\n".join(message["content"] for message in messages) for messages in some]
        # The template has already written every special token there should be.
        found = tokenizer(texts, add_special_tokens=not tokenizer.chat_template, return_attention_mask=False)
        yield from map(tuple, found["input_ids"])


class PromptSource:
    """Problems as prompts, in an order that depends on nothing but the seed.

    Args:
        problems: at least one.
        tokenizer: of the policy.
        seed: of the order.
        max_prompt_tokens: longer prompts are handled as `overlong_prompts` says.
        overlong_prompts: `skip` (counted and logged) or `error`.

    Raises:
        DataError: no problem, a prompt that is too long (`error`), or none short enough (`skip`).
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        max_prompt_tokens: int,
        overlong_prompts: Literal["skip", "error"],
    ) -> None:
        self.seed, self.num_skipped = seed, 0
        self._items: list[tuple[Problem, tuple[int, ...]]] = []
        for problem, token_ids in zip(problems, tokenize(problems, tokenizer), strict=True):
            if len(token_ids) <= max_prompt_tokens:
                self._items.append((problem, token_ids))
            elif overlong_prompts == "error":
                raise DataError(
                    f"the prompt of problem {problem.id} has {len(token_ids)} tokens, more than "
                    f"rollout.max_prompt_tokens={max_prompt_tokens}: raise it, or set rollout.overlong_prompts=skip"
                )
            else:
                self.num_skipped += 1
        if not self._items:
            raise DataError(
                f"no prompt is left: {self.num_skipped} of {len(problems)} are longer than "
                f"rollout.max_prompt_tokens={max_prompt_tokens}"
            )
        if self.num_skipped:
            log.warning(
                "skipped %d of %d prompts longer than %d tokens", self.num_skipped, len(problems), max_prompt_tokens
            )
        self._permutation: tuple[int, list[int]] = (-1, [])

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(token_ids) for _, token_ids in self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def order(self) -> str:
        """A name of the endless order: the same seed and prompts, and nothing else, give the same one."""
        digest = hashlib.sha256(f"{self.seed}".encode())
        for problem, token_ids in self._items:
            digest.update(f"\n{problem.id}\n".encode() + array("q", token_ids).tobytes())
        return digest.hexdigest()[:16]

    def in_order(self) -> list[Prompt]:
        """Each prompt once, as the task gives them."""
        return [Prompt(problem, token_ids, i) for i, (problem, token_ids) in enumerate(self._items)]

    def take(self, start: int, count: int) -> list[Prompt]:
        """Prompts `start` to `start + count` of the endless order; each pass over the problems is shuffled anew."""
        return [self._at(index) for index in range(start, start + count)]

    def _at(self, index: int) -> Prompt:
        turn, place = divmod(index, len(self._items))
        if self._permutation[0] != turn:
            order = list(range(len(self._items)))
            random.Random(derived_seed(self.seed, "order", turn)).shuffle(order)
            self._permutation = (turn, order)
        problem, token_ids = self._items[self._permutation[1][place]]
        return Prompt(problem, token_ids, index)
