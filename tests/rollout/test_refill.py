"""Places of dropped groups are refilled: which groups are learned from, what is reported, where a run goes on."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import training
from lightning.pytorch.callbacks import Callback
from training import SMALL, fit, weights, widest_difference

from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import Run, build_data, build_run
from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.derived import DerivedNumbers
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.refill import Group, StepCut, refill, spread, teaching
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, Verdict

# Two responses a prompt are often both right or both wrong: a phase takes several batches.
PAIRS = ("rollout.group_size=2", "rollout.prompts_per_step=4", "task.num_train=500", "seed=1")
REFILLED = ("conf=dapo", *PAIRS)
STILL = "optim.lr=0"  # every epoch draws from the same policy

Record = dict[str, Any]


def recorded(folder: Path, version: int) -> list[list[Record]]:
    """Groups of two of a rollout file."""
    rows = training.recorded(folder, version)
    return [rows[start : start + 2] for start in range(0, len(rows), 2)]


def differ(group: list[Record]) -> bool:
    return len({row["reward"] for row in group}) > 1


def identity(groups: list[list[Record]]) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(row["prompt_index"], row["sample"], tuple(row["token_ids"])) for group in groups for row in group]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[list[Record]]:
    """The groups of the first 96 prompts, every one of them, drawn eight prompts an epoch."""
    folder = tmp_path_factory.mktemp("endless")
    fit(folder, "conf=grpo", *PAIRS, STILL, "trainer.max_epochs=12", "trainer.val_every_n_epochs=12")
    groups = list(chain.from_iterable(recorded(folder, 2 * epoch) for epoch in range(12)))
    assert [group[0]["prompt_index"] for group in groups] == list(range(96))
    return groups


def expected_phase(endless: list[list[Record]], start: int) -> tuple[list[list[Record]], int]:
    """The eight groups a phase beginning at a prompt learns from, and how many batches that takes."""
    for batches in range(1, 11):
        useful = [group for group in endless[start : start + 8 * batches] if differ(group)]
        if len(useful) >= 8:
            return useful[:8], batches
    raise AssertionError("ten batches should do")


@pytest.fixture(scope="module")
def refilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("refilled")
    return folder, fit(folder, *REFILLED, STILL)


def test_the_first_groups_of_unequal_rewards_are_learned_from(
    endless: list[list[Record]], refilled: tuple[Path, Run]
) -> None:
    folder, run = refilled
    start = 0
    for version in (0, 2):
        groups, batches = expected_phase(endless, start)
        assert batches > 1
        assert identity(recorded(folder, version)) == identity(groups)
        assert all(row["advantage"] != 0 for row in chain.from_iterable(recorded(folder, version)))
        start += 8 * batches  # the next phase begins after the last batch drawn
    assert run.data.state_dict()["next_cursor"] == start


def test_steps_hold_the_groups_in_prompt_order(refilled: tuple[Path, Run]) -> None:
    folder, run = refilled
    (first, second), groups = run.data.steps, recorded(folder, 2)
    for step, held in ((first, groups[:4]), (second, groups[4:])):
        rows = {(row.prompt_index, row.sample): row for row in step}
        records = list(chain.from_iterable(held))
        assert len(rows) == len(step) == len(records)
        for record in records:
            row = rows[record["prompt_index"], record["sample"]]
            assert row.token_ids[1:][row.loss_mask].tolist() == record["token_ids"]


def test_what_is_reported_is_of_all_responses_drawn(endless: list[list[Record]], refilled: tuple[Path, Run]) -> None:
    start = 8 * expected_phase(endless, 0)[1]
    groups, batches = expected_phase(endless, start)
    drawn = endless[start : start + 8 * batches]
    rows = list(chain.from_iterable(drawn))
    report = refilled[1].data.report
    assert report["rollout/generation_batches"] == batches
    assert report["rollout/responses"] == 16 * batches
    assert report["rollout/equal_groups"] == pytest.approx(sum(not differ(group) for group in drawn) / len(drawn))
    assert report["rollout/refilled_groups"] == sum(group[0]["prompt_index"] >= start + 8 for group in groups) > 0
    mean = sum(row["reward"] for row in rows) / len(rows)
    assert report["reward/mean"] == report["rollout/accuracy"] == pytest.approx(mean)
    assert mean != 0.5  # which is what every group learned from has
    tokens = sum(len(row["token_ids"]) for row in rows) / len(rows)
    assert report["rollout/response_tokens"] == pytest.approx(tokens)


def test_without_refill_a_phase_is_one_batch(endless: list[list[Record]], tmp_path: Path) -> None:
    run = fit(tmp_path, *REFILLED, STILL, "rollout.generation_batches=1")
    assert identity(recorded(tmp_path, 2)) == identity(endless[8:16])
    assert run.data.state_dict()["next_cursor"] == 16
    assert run.data.report["rollout/generation_batches"] == 1
    assert run.data.report["rollout/refilled_groups"] == 0


def test_what_cannot_be_filled_carries_no_weight(
    endless: list[list[Record]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    useful = [group for group in endless[:16] if differ(group)]
    empty = [group for group in endless[:8] if not differ(group)][: 8 - len(useful)]
    assert 0 < len(useful) < 8
    with caplog.at_level(logging.WARNING):
        run = fit(tmp_path, *REFILLED, STILL, "rollout.generation_batches=2", "trainer.max_epochs=1")
    assert [record.getMessage() for record in caplog.records if "unequal" in record.getMessage()] == [
        f"only {len(useful)} of 8 groups have unequal rewards after rollout.generation_batches=2: "
        "the other places carry no weight"
    ]
    expected = sorted([*useful, *empty], key=lambda group: int(group[0]["prompt_index"]))
    assert identity(recorded(tmp_path, 0)) == identity(expected)
    busy = [{row.prompt_index for row in step if row.loss_mask.any()} for step in run.data.steps]
    assert sum(map(len, busy)) == len(useful)
    assert abs(len(busy[0]) - len(busy[1])) <= 1
    assert run.data.state_dict()["next_cursor"] == 16
    assert run.data.report["rollout/generation_batches"] == 2
    assert run.data.report["rollout/refilled_groups"] == sum(group[0]["prompt_index"] >= 8 for group in useful)


class Generous:
    """Everything is right."""

    def __call__(self, response: str, problem: Problem) -> Verdict:
        return Verdict(1.0, True)


def test_a_run_goes_on_where_no_group_teaches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = compose([*SMALL, *REFILLED, f"output_dir={tmp_path}", "rollout.generation_batches=3", "trainer.max_epochs=1"])
    run = build_run(cfg)
    run.data.verifier = Generous()
    run.fit()
    assert (
        "only 0 of 8 groups have unequal rewards after rollout.generation_batches=3: the other places carry"
        in caplog.text
    )
    assert run.module.policy_version == 2
    start = torch.cat([weight.flatten() for _, weight in Policy(ModelSource()).full_weights()])
    assert torch.equal(weights(run), start)


class Breaks(Callback):
    """Presses Ctrl-C: before a step of its second epoch, or (None) at the second batch of the third phase."""

    def __init__(self, step: int | None) -> None:
        self.step, self.batches, self.updating = step, 0, 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.datamodule.phase_listeners.append(self.on_phase)  # type: ignore[attr-defined]

    def on_phase(self, phase: str) -> None:
        self.updating += phase == "updating"
        self.batches += phase == "sampling" and self.updating == 2
        # One batch of the third turn is the validation's after the second epoch.
        if self.step is None and self.batches == 3:
            raise KeyboardInterrupt

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1 and batch_idx == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    fit(folder, *REFILLED, "rollout.passes=2", "trainer.max_epochs=4")
    return folder


def same_run(one: Path, other: Path) -> None:
    assert widest_difference(one, other) == 0
    for version in (0, 4, 8, 12):
        assert recorded(one, version) == recorded(other, version)
    starts = [recorded(one, version)[0][0]["prompt_index"] for version in (0, 4, 8, 12)]
    assert starts[1] >= 16  # the first phase took more than one batch
    assert starts == sorted(starts)


def test_a_run_resumed_between_epochs_ends_where_an_unbroken_one_does(unbroken: Path, tmp_path: Path) -> None:
    fit(tmp_path, *REFILLED, "rollout.passes=2")
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=4")) == 0
    same_run(unbroken, tmp_path)


@pytest.mark.parametrize("step", [0, 1, 3, None])
def test_a_run_broken_off_within_a_phase_resumes_exactly(step: int | None, unbroken: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, *REFILLED, "rollout.passes=2", "trainer.max_epochs=4", f"output_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        build_run(compose(overrides), [Breaks(step)]).fit()
    assert main(("fit", f"resume={tmp_path}")) == 0
    same_run(unbroken, tmp_path)


def group(index: int, *rewards: float) -> Group:
    prompt = Prompt(Problem(str(index), (), "1"), (2,), index)
    episode = Episode.of(Generation((7,), (-0.5,), "stop", 0))
    return [Rollout(prompt, i, episode, "", Verdict(reward, reward == 1)) for i, reward in enumerate(rewards)]


def test_refill_stops_at_enough_and_leaves_the_surplus(caplog: pytest.LogCaptureFixture) -> None:
    batches = [[group(0, 1, 1), group(1, 0, 1), group(2, 0, 0)], [group(3, 0, 1), group(4, 1, 0), group(5, 1, 0)]]
    kept, drawn = refill(batches.__getitem__, 3, 10)
    assert ([g[0].prompt.index for g in kept], drawn) == ([1, 3, 4], 2)
    kept, drawn = refill(batches.__getitem__, 1, 10)
    assert ([g[0].prompt.index for g in kept], drawn) == ([1], 1)
    assert teaching(batches[0]) == [False, True, False]
    assert caplog.messages == []
    # A single empty place holds the first group that teaches nothing, so that every place has a group.
    kept, drawn = refill(batches.__getitem__, 2, 1)
    assert ([g[0].prompt.index for g in kept], drawn) == ([0, 1], 1)
    assert [message[:20] for message in caplog.messages] == ["only 1 of 2 groups h"]


def test_empty_places_lie_between_the_others() -> None:
    assert spread("abcd", "....") == list(".a.b.c.d")
    assert spread("abc", ".") == list(".abc")
    assert spread("ab", "......") == list("...a...b")
    assert (spread("", ".."), spread("ab", "")) == ([".", "."], ["a", "b"])


def test_a_phase_is_cut_into_steps_and_ranks() -> None:
    assert StepCut(8, 4).mine(range(8)) == [range(4), range(4, 8)]
    assert [StepCut(8, 4, rank, 2).mine("abcdefgh") for rank in (0, 1)] == [["ab", "ef"], ["cd", "gh"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("conf=dapo", "rollout.generation_batches=0"), "rollout.generation_batches must be at least 1; got 0"),
        (
            ("conf=grpo", "rollout.generation_batches=2"),
            "rollout.generation_batches above 1 needs drop_equal_groups=true: only dropped groups leave places to "
            "refill; got 2",
        ),
    ],
)
def test_refusals(settings: tuple[str, ...], message: str) -> None:
    cfg = compose([*SMALL, *PAIRS, *settings])
    with pytest.raises(ConfigError) as refusal:
        build_data(cfg, ModelSource(), component(cfg, "engine"))
    assert str(refusal.value) == message


def test_the_table_tells_how_much_may_be_drawn() -> None:
    rows = dict(DerivedNumbers.of(compose(["conf=dapo"])).rows)
    assert rows["responses per epoch"] == "256 (up to 10 batches of them)"
    assert rows["response tokens per epoch"] == f"at most {256 * 10 * 48:,}"
    assert dict(DerivedNumbers.of(compose(["conf=grpo"])).rows)["responses per epoch"] == "256"
