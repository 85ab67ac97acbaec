"""From graded rollouts to rows, and from rows to micro-batches and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlvr_lightning.protocols import AdvantageEstimator, RewardShaping
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.rollout.sharing import twins
from rlvr_lightning.types import Rollout, Row, TokenBatch


def is_usable(rollout: Rollout) -> bool:
    """Whether a response may carry weight: it was judged, and its log-probabilities are finite."""
    return rollout.verdict is not None and all(map(math.isfinite, rollout.episode.logprobs))


def is_cut(rollout: Rollout) -> bool:
    """Whether a response ended at its length instead of by itself."""
    return rollout.episode.finish_reason == "length"


def rewards_of(rollouts: Sequence[Rollout], group_size: int) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
    """Rewards of whole groups, and which of them count."""
    valid = torch.tensor([is_usable(rollout) for rollout in rollouts]).view(-1, group_size)
    rewards = torch.tensor([0.0 if r.verdict is None else r.verdict.reward for r in rollouts]).view(-1, group_size)
    return rewards, valid


def equal_groups(rewards: Float[Tensor, "P G"], valid: Bool[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Groups that teach nothing: all counted rewards are the same."""
    highest = torch.where(valid, rewards, -torch.inf).amax(-1)
    lowest = torch.where(valid, rewards, torch.inf).amin(-1)
    return highest <= lowest


def shaped_rewards(
    rewards: Float[Tensor, "P G"], rollouts: Sequence[Rollout], shaping: RewardShaping | None
) -> Float[Tensor, "P G"]:
    """What the advantage is made of."""
    if shaping is None:
        return rewards
    return shaping(rewards, torch.tensor([r.episode.num_written for r in rollouts]).view_as(rewards))


def make_rows(
    rollouts: Sequence[Rollout],
    group_size: int,
    advantage: AdvantageEstimator,
    seed: int,
    *,
    drop_equal_groups: bool,
    mask_truncated: bool = False,
    shaping: RewardShaping | None = None,
    sampled_ahead: bool = False,
) -> list[Row]:
    """The rows of whole groups, in their order.

    Args:
        rollouts: group after group.
        group_size: responses a prompt.
        advantage: rewards to advantages.
        seed: of the run, for each token's random number.
        drop_equal_groups: groups of equal rewards (the verifier's) carry no weight, not even in the denominators.
        mask_truncated: responses cut by their length carry no weight (DAPO's overlong filtering); their rewards count in
            their groups all the same.
        shaping: of the rewards, before the advantage.
        sampled_ahead: the responses were drawn by earlier policies, which nothing can score any more: their old
            log-probabilities are those the engine drew them with.
    """
    rewards, valid = rewards_of(rollouts, group_size)
    advantages = advantage(shaped_rewards(rewards, rollouts, shaping), valid).flatten()
    carries = valid & ~equal_groups(rewards, valid).unsqueeze(-1) if drop_equal_groups else valid
    if mask_truncated:
        carries = carries & ~torch.tensor([is_cut(rollout) for rollout in rollouts]).view_as(carries)
    rows = zip(rollouts, advantages, carries.flatten().tolist(), strict=True)
    made = [_row(rollout, value, seed, weight=weight) for rollout, value, weight in rows]
    return [replace(row, old_logprobs=row.rollout_logprobs) for row in made] if sampled_ahead else made


def _row(rollout: Rollout, advantage: Tensor, seed: int, *, weight: bool) -> Row:
    prompt, response = rollout.prompt.token_ids, rollout.episode.token_ids
    before, scored = len(prompt) - 1, len(prompt) - 1 + len(response)
    loss_mask = torch.zeros(scored, dtype=torch.bool)
    rollout_logprobs, noise = torch.zeros(scored), torch.zeros(scored)
    generator = torch.Generator().manual_seed(derived_seed(seed, "noise", rollout.prompt.index, rollout.sample))
    noise[before:] = torch.rand(len(response), generator=generator)
    if weight:
        loss_mask[before:] = torch.tensor(rollout.episode.written)
        rollout_logprobs[before:] = torch.tensor(rollout.episode.logprobs)
    ids, advantages = torch.tensor(prompt + response), advantage * loss_mask
    return Row(rollout.prompt.index, rollout.sample, ids, loss_mask, advantages, rollout_logprobs, noise)


def collate(rows: Sequence[Row], pad_token_id: int, *, packed: bool) -> TokenBatch:
    """A micro-batch.

    Args:
        rows: all of them scored, or none; without any, the batch is a row of two tokens that carry no weight.
        pad_token_id: what fills the padding.
        packed: one after another in a single row, instead of side by side and padded on the right.
    """
    if not rows:
        none = torch.zeros(1, 1)
        return TokenBatch(torch.full((1, 2), pad_token_id), none.bool(), none, none, none)

    def laid_out(tensors: list[Tensor], fill: int) -> Tensor:
        return torch.cat(tensors)[None] if packed else pad_sequence(tensors, batch_first=True, padding_value=fill)

    def scored(tensors: list[Tensor]) -> Tensor:
        if not packed:
            return pad_sequence(tensors, batch_first=True)
        # An entry for each response's first token too: nothing scores it, but it lies between two responses.
        between = tensors[0].new_zeros(1, *tensors[0].shape[1:])
        return torch.cat([piece for tensor in tensors for piece in (between, tensor)])[None, 1:]

    def optional(tensors: list[Tensor | None]) -> Tensor | None:
        held = [tensor for tensor in tensors if tensor is not None]
        assert len(held) in (0, len(rows)), "rows of one step are scored alike"
        return scored(held) if held else None

    segments = [torch.full((len(row),), segment) for segment, row in enumerate(rows)]
    return TokenBatch(
        laid_out([row.token_ids for row in rows], pad_token_id),
        scored([row.loss_mask for row in rows]),
        scored([row.advantages for row in rows]),
        scored([row.rollout_logprobs for row in rows]),
        scored([row.noise for row in rows]),
        optional([row.old_logprobs for row in rows]),
        optional([row.ref_logprobs for row in rows]),
        {name: scored([row.old_statistics[name] for row in rows]) for name in rows[0].old_statistics},
        laid_out(segments, 0)[:, 1:] if packed else None,
        twins(rows) if packed else None,
    )


def scored_rows(batch: TokenBatch, rows: Sequence[Row]) -> list[Row]:
    """The rows a micro-batch was made of, with what scoring has added to it."""
    found, start = [], 0
    for place, row in enumerate(rows):
        own = (place, slice(0, len(row) - 1)) if batch.segments is None else (0, slice(start, start + len(row) - 1))
        start += len(row)
        # Copies: a view would keep the whole micro-batch in memory, and be written to disk with it.
        found.append(
            replace(
                row,
                old_logprobs=None if batch.old_logprobs is None else batch.old_logprobs[own].clone(),
                ref_logprobs=None if batch.ref_logprobs is None else batch.ref_logprobs[own].clone(),
                old_statistics={name: values[own].clone() for name, values in batch.old_statistics.items()},
            )
        )
    return found
