"""The soft overlong punishment: its corners by hand, and what a run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import fit, recorded

from rlvr_lightning.config.build import build_data
from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.methods.shaping.overlong import OverlongPenalty
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.batching import make_rows
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, Verdict


def rollout(length: int, reward: float | None) -> Rollout:
    episode = Episode.of(Generation((7,) * length, (-0.5,) * length, "stop", 0))
    verdict = None if reward is None else Verdict(reward, reward == 1.0)
    return Rollout(Prompt(Problem("p", (), "1"), (2, 3), 0), 0, episode, "", verdict)


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (15, 0.0), (16, -0.2), (18, -0.6), (19, -0.8), (20, -1.0), (21, -1.0), (99, -1.0)]
)
def test_the_penalty_at_its_corners(length: int, penalty: float) -> None:
    rewards = torch.tensor([[1.0, 0.0]])
    lengths = torch.tensor([[length, 3]])
    shaped = OverlongPenalty(buffer=5, max_length=20)(rewards, lengths)
    torch.testing.assert_close(shaped, torch.tensor([[1.0 + penalty, 0.0]]))
    halved = OverlongPenalty(buffer=5, max_length=20, weight=0.5)(rewards.double(), lengths)
    torch.testing.assert_close(halved, torch.tensor([[1.0 + penalty / 2, 0.0]], dtype=torch.float64))


def test_the_papers_numbers() -> None:
    penalty = OverlongPenalty(buffer=4096, max_length=20480)
    lengths = torch.tensor([[16384, 18432, 20480, 20481]])
    assert penalty(torch.ones(1, 4), lengths).tolist() == [[1.0, 0.5, 0.0, 0.0]]


def test_advantages_are_made_of_the_shaped_rewards_and_groups_dropped_by_the_raw_ones() -> None:
    # Lengths 16 and 20 cost 0.2 and 1; the response without a verdict stays out of its group's mean.
    first = [rollout(3, 1.0), rollout(16, 1.0), rollout(20, 0.0), rollout(20, None)]
    equal = [rollout(3, 1.0), rollout(3, 1.0), rollout(20, 1.0), rollout(20, 1.0)]
    shaping = OverlongPenalty(buffer=5, max_length=20)
    plain = GroupRelative(normalize=False)
    for drop in (False, True):
        rows = make_rows([*first, *equal], 4, plain, 0, drop_equal_groups=drop, shaping=shaping)
        mean = (1.0 + 0.8 - 1.0) / 3
        expected = [1.0 - mean, 0.8 - mean, -1.0 - mean, 0.0]
        expected += [0.0] * 4 if drop else [0.5, 0.5, -0.5, -0.5]
        assert [float(row.advantages[-1]) for row in rows] == pytest.approx(expected)
        assert [bool(row.loss_mask.any()) for row in rows] == [True, True, True, False, *[not drop] * 4]


def test_a_run_learns_from_and_logs_the_shaped_rewards(tmp_path: Path) -> None:
    run = fit(
        tmp_path,
        "conf=grpo",
        "rollout.prompts_per_step=8",
        "shaping=overlong",
        "shaping.buffer=40",
        "trainer.max_epochs=1",
    )
    rows = recorded(tmp_path, 0)
    # 48 tokens at most: the penalty grows from the ninth token on.
    lengths = [len(row["token_ids"]) for row in rows]
    shaped = [row["reward"] - max(0, length - 8) / 40 for row, length in zip(rows, lengths, strict=True)]
    assert len(set(lengths)) > 2
    assert run.data.report["reward/shaped"] == pytest.approx(sum(shaped) / len(shaped))
    assert run.data.report["reward/mean"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
    groups = torch.tensor(shaped, dtype=torch.float64).view(-1, 4)
    advantages = (groups - groups.mean(-1, keepdim=True)) / (groups.std(-1, keepdim=True) + 1e-6)
    logged = torch.tensor([row["advantage"] for row in rows], dtype=torch.float64).view(-1, 4)
    torch.testing.assert_close(logged, advantages, rtol=1e-5, atol=1e-5)


def test_without_a_shaping_nothing_is_logged_of_it(tmp_path: Path) -> None:
    run = fit(tmp_path, "conf=grpo", "rollout.prompts_per_step=8", "trainer.max_epochs=1", "task.num_train=500")
    assert run.data.shaping is None
    assert "reward/shaped" not in run.data.report


def test_the_configuration_follows_the_longest_response() -> None:
    cfg = compose(["conf=dapo", "engine=transformers", "rollout.max_new_tokens=64"])
    shaping = build_data(cfg, ModelSource(), component(cfg, "engine")).shaping
    assert isinstance(shaping, OverlongPenalty)
    assert (shaping.max_length, shaping.buffer, shaping.weight) == (64, 10, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("rollout.max_new_tokens=8",), "OverlongPenalty.buffer must be from 1 to max_length=8; got 10"),
        (("shaping.buffer=0",), "OverlongPenalty.buffer must be from 1 to max_length=48; got 0"),
        (("shaping.weight=0",), "OverlongPenalty.weight must be above 0; got 0"),
        (("shaping.weight=nan",), "OverlongPenalty.weight must be above 0; got nan"),
    ],
)
def test_refusals(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        component(compose(["shaping=overlong", *settings]), "shaping")
