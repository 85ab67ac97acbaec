"""An episode of several turns goes through rows, files and buffers as one of a single turn does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.rollout.batching import collate, make_rows
from rlvr_lightning.rollout.buffers import load_buffer, save_buffer
from rlvr_lightning.rollout.recorded import read_recorded, write_recorded
from rlvr_lightning.rollout.store import rollout_record
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, Verdict

FIRST = Generation((7, 8), (-0.5, -0.25), "stop", 4)
SECOND = Generation((9, 1), (-0.75, -1.0), "length", 3)
TALK = Episode.of(FIRST).answered((5, 6, 5)).continued(SECOND)


def rollouts() -> list[Rollout]:
    prompt = Prompt(Problem("p", ({"role": "user", "content": "?"},), "1"), (2, 3), 11)
    right = Rollout(prompt, 0, TALK, "x", Verdict(1.0, True), kind="correct")
    return [right, Rollout(prompt, 1, Episode.of(FIRST), "y", Verdict(0.0, False), kind="wrong")]


def test_turns_are_appended() -> None:
    assert TALK.token_ids == (7, 8, 5, 6, 5, 9, 1)
    assert TALK.written == (True, True, False, False, False, True, True)
    assert TALK.logprobs == (-0.5, -0.25, 0.0, 0.0, 0.0, -0.75, -1.0)
    assert (TALK.finish_reason, TALK.policy_version, TALK.num_written) == ("length", 3, 4)


def test_only_what_the_policy_wrote_is_learned_from() -> None:
    rows = make_rows(rollouts(), 2, GroupRelative(normalize=False), 0, drop_equal_groups=False)
    talk = rows[0]
    assert talk.token_ids.tolist() == [2, 3, 7, 8, 5, 6, 5, 9, 1]
    # Entry t is of token t + 1: the prompt's second, then the episode.
    assert talk.loss_mask.tolist() == [False, True, True, False, False, False, True, True]
    assert talk.advantages.tolist() == [0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5]
    assert talk.rollout_logprobs.tolist() == [0.0, -0.5, -0.25, 0.0, 0.0, 0.0, -0.75, -1.0]
    assert all(0 <= value < 1 for value in talk.noise.tolist())
    for packed in (True, False):
        batch = collate(rows, 0, packed=packed)
        assert int(batch.loss_mask.sum()) == 6
        assert batch.targets[batch.loss_mask].tolist() == [7, 8, 9, 1, 7, 8]


def test_files_and_buffers_hold_whole_episodes(tmp_path: Path) -> None:
    drawn = rollouts()
    rows = make_rows(drawn, 2, GroupRelative(), 0, drop_equal_groups=False)
    save_buffer(tmp_path, 4, [rows], {}, 0, 1)
    steps, _ = load_buffer(tmp_path, 4, 0, 1)
    for one, other in zip(steps[0], rows, strict=True):
        assert torch.equal(one.loss_mask, other.loss_mask)
        assert torch.equal(one.token_ids, other.token_ids)
    write_recorded(tmp_path / "rollouts", 4, 0, 1, [rollout_record(one, 0.5) for one in drawn])
    first, second = read_recorded(tmp_path / "rollouts")
    assert first["token_ids"] == list(TALK.token_ids)
    assert first["written"] == list(TALK.written)
    # What was drawn in float32 comes back to the last bit.
    assert first["logprobs"] == list(TALK.logprobs)
    assert (first["policy_version"], first["phase"], second["sample"]) == (3, 4, 1)


def test_rows_of_earlier_policies_start_from_what_the_engine_drew_with() -> None:
    plain = make_rows(rollouts(), 2, GroupRelative(), 0, drop_equal_groups=False)
    ahead = make_rows(rollouts(), 2, GroupRelative(), 0, drop_equal_groups=False, sampled_ahead=True)
    assert [row.old_logprobs for row in plain] == [None, None]
    for row in ahead:
        assert row.old_logprobs is not None
        assert torch.equal(row.old_logprobs, row.rollout_logprobs)


def test_an_episode_is_of_the_oldest_weights() -> None:
    newer = replace(SECOND, policy_version=9)
    assert Episode.of(FIRST).continued(newer).policy_version == 4
    with pytest.raises(AttributeError):
        TALK.policy_version = 1  # type: ignore[misc]
