"""From graded rollouts to the padded tensors of an optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlvr_lightning.protocols import AdvantageEstimator, RewardShaping
from rlvr_lightning.rollout.prompts import derived_seed
from rlvr_lightning.types import Rollout, TokenBatch


def is_usable(rollout: Rollout) -> bool:
    """Whether a response may carry weight: it was judged, and its log-probabilities are finite."""
    return rollout.verdict is not None and all(map(math.isfinite, rollout.generation.logprobs))


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
    return shaping(rewards, torch.tensor([len(r.generation.token_ids) for r in rollouts]).view_as(rewards))


def make_batch(
    rollouts: Sequence[Rollout],
    group_size: int,
    advantage: AdvantageEstimator,
    pad_token_id: int,
    seed: int,
    *,
    drop_equal_groups: bool,
    shaping: RewardShaping | None = None,
) -> TokenBatch:
    """The rows of whole groups.

    Args:
        rollouts: group after group.
        group_size: responses a prompt.
        advantage: rewards to advantages.
        pad_token_id: what fills the padding.
        seed: of the run, for each token's random number.
        drop_equal_groups: groups of equal rewards (the verifier's) carry no weight, not even in the denominators.
        shaping: of the rewards, before the advantage.
    """
    rewards, valid = rewards_of(rollouts, group_size)
    advantages = advantage(shaped_rewards(rewards, rollouts, shaping), valid)
    carries = valid & ~equal_groups(rewards, valid).unsqueeze(-1) if drop_equal_groups else valid
    prompt_width = max(len(r.prompt.token_ids) for r in rollouts)
    width = max(len(r.generation.token_ids) for r in rollouts)
    rows = len(rollouts)
    input_ids = torch.full((rows, prompt_width + width), pad_token_id)
    attention_mask = torch.zeros(rows, prompt_width + width, dtype=torch.long)
    loss_mask = torch.zeros(rows, width, dtype=torch.bool)
    rollout_logprobs, noise = torch.zeros(rows, width), torch.zeros(rows, width)
    for row, rollout in enumerate(rollouts):
        prompt, response = rollout.prompt.token_ids, rollout.generation.token_ids
        start, end = prompt_width - len(prompt), prompt_width + len(response)
        input_ids[row, start:end] = torch.tensor(prompt + response)
        attention_mask[row, start:end] = 1
        generator = torch.Generator().manual_seed(derived_seed(seed, "noise", rollout.prompt.index, rollout.sample))
        noise[row, : len(response)] = torch.rand(len(response), generator=generator)
        if carries.view(-1)[row]:
            loss_mask[row, : len(response)] = True
            rollout_logprobs[row, : len(response)] = torch.tensor(rollout.generation.logprobs)
    spread = advantages.reshape(-1, 1) * loss_mask
    return TokenBatch(input_ids, attention_mask, loss_mask, spread, rollout_logprobs, noise=noise)
