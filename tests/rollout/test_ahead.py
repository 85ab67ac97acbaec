"""Phases drawn ahead: which responses are learned from when, that none is lost or learned from twice, and going on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apart import Apart
from lightning.pytorch.callbacks import Callback
from training import SMALL, fit, last_checkpoint, recorded

from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import Run, build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError, EngineLostError, RolloutError
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

# Two optimizer steps a phase.
COMMON = (*SMALL, "conf=grpo", "rollout.prompts_per_step=4", "rollout.group_size=2", "trainer.max_epochs=5")


def ahead(folder: Path, lag: int, *overrides: str, engine: Apart | None = None, callbacks: Any = ()) -> Run:
    run = build_run(compose([*COMMON, *overrides, f"output_dir={folder}"]), list(callbacks))
    run.data.engine, run.data.max_lag = engine or Apart(), lag
    run.fit()
    return run


def indices(folder: Path) -> list[list[int]]:
    """Prompts of each phase."""
    phases: dict[int, set[int]] = {}
    for row in recorded(folder):
        phases.setdefault(row["phase"], set()).add(row["prompt_index"])
    return [sorted(held) for _, held in sorted(phases.items())]


@pytest.mark.slow
def test_an_engine_apart_without_lag_is_bit_for_bit_the_one_in_process(tmp_path: Path) -> None:
    ahead(tmp_path / "apart", 0)
    fit(tmp_path / "plain", *COMMON)
    one, other = last_checkpoint(tmp_path / "apart"), last_checkpoint(tmp_path / "plain")
    assert one.keys() == other.keys()
    # One response at a time is rounded otherwise than many.
    assert max(float((one[name] - other[name]).abs().max()) for name in one if "exp_avg" not in name) < 1e-4
    assert indices(tmp_path / "apart") == indices(tmp_path / "plain")


@pytest.mark.parametrize("lag", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_phase_is_of_earlier_weights_and_none_is_lost_or_used_twice(tmp_path: Path, lag: int) -> None:
    engine = Apart()
    ahead(tmp_path, lag, engine=engine)
    assert indices(tmp_path) == [list(range(8 * phase, 8 * phase + 8)) for phase in range(5)]
    rows = recorded(tmp_path)
    assert set(Counter((row["prompt_index"], row["sample"]) for row in rows).values()) == {1}
    assert len(rows) == 5 * 8 * 2
    lags = {(row["phase"], row["policy_version"]) for row in rows}
    if lag == 1:
        # The first two are of the first weights; each later one is of those that the phase before began with, or newer
        # ones that a validation has brought.
        assert {(0, 0), (2, 0), (6, 4)} <= lags <= {(0, 0), (2, 0), (4, 2), (6, 4), (8, 6), (4, 4), (8, 8)}
    assert all(0 <= phase - version <= 2 * lag for phase, version in lags)
    # Nothing was asked for that nobody would learn from; validation and canaries aside, all in prompt order.
    seeds = {row["seed"] for row in rows}
    assert sum(seed in seeds for _, seed in engine.asked) == len(rows)
    logged = [
        float(row["rollout/lag"]) for row in read_table(tmp_path / "logs" / "metrics.csv") if "rollout/lag" in row
    ]
    assert logged[0] == 0 < logged[-1] <= 2 * lag


@pytest.mark.slow
def test_old_log_probabilities_are_those_of_the_version_that_sampled(tmp_path: Path) -> None:
    run = ahead(tmp_path, 1)
    drawn = {(row["prompt_index"], row["sample"]): row for row in recorded(tmp_path, 8)}
    rows = [row for step in run.data.steps for row in step]
    assert rows
    for row in rows:
        assert row.old_logprobs is not None
        own = row.old_logprobs[row.loss_mask]
        assert own.tolist() == drawn[row.prompt_index, row.sample]["logprobs"]


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 1])
def test_responses_drawn_with_other_weights_are_refused_and_drawn_again(tmp_path: Path, lag: int) -> None:
    class Forgetful(Apart):
        """Draws with weights of before the run from its fiftieth request on, until it is given the policy's again."""

        stale = False

        def sync(self, weights: Any, policy_version: int) -> None:
            super().sync(weights, policy_version)
            self.stale = False

        def _one(self, request: GenerationRequest, sampling: SamplingSpec) -> Generation:
            self.stale |= len(self.asked) == 50
            drawn = super()._one(request, sampling)
            return replace(drawn, policy_version=-7) if self.stale else drawn

    engine = Forgetful()
    ahead(tmp_path, lag, "trainer.val_every_n_epochs=9", engine=engine)
    assert indices(tmp_path) == [list(range(8 * phase, 8 * phase + 8)) for phase in range(5)]
    rows = recorded(tmp_path)
    assert len({(row["prompt_index"], row["sample"]) for row in rows}) == len(rows) == 5 * 8 * 2
    assert min(row["policy_version"] for row in rows) == 0
    logged = [
        float(row["engine/refused"]) for row in read_table(tmp_path / "logs" / "metrics.csv") if "engine/refused" in row
    ]
    assert sum(logged) >= 1


@pytest.mark.parametrize("lag", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lost_engine_is_given_its_weights_and_asked_for_what_is_missing(tmp_path: Path, lag: int) -> None:
    engine, count = Apart(), 0

    def dies_once(request: GenerationRequest) -> None:
        nonlocal count
        count += 1
        if count == 60:
            engine.lost = True

    engine.before = dies_once
    ahead(tmp_path, lag, engine=engine)
    assert indices(tmp_path) == [list(range(8 * phase, 8 * phase + 8)) for phase in range(5)]
    rows = recorded(tmp_path)
    assert len({(row["prompt_index"], row["sample"]) for row in rows}) == len(rows) == 5 * 8 * 2
    # By the response that was lost with it, or by the comparison that follows a sync, or both.
    assert 1 <= len(engine.synced) - len(set(engine.synced)) <= 2


@pytest.mark.slow
def test_an_engine_that_stays_lost_ends_the_run(tmp_path: Path) -> None:
    engine = Apart()

    def dies(request: GenerationRequest) -> None:
        if len(engine.asked) > 40:
            raise EngineLostError("gone for good")

    engine.before = dies
    with pytest.raises(RolloutError, match="the engine was lost 4 times while it"):
        ahead(tmp_path, 1, engine=engine)


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.policy_version == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4])
def test_a_stopped_run_goes_on_with_what_was_under_way(tmp_path: Path, step: int) -> None:
    with pytest.raises(SystemExit):
        ahead(tmp_path, 1, callbacks=[Stop(step)])
    before = indices(tmp_path)
    run = build_run(compose([*COMMON, f"resume={tmp_path}", f"output_dir={tmp_path}"]))
    run.data.engine, run.data.max_lag = Apart(), 1
    run.fit()
    assert indices(tmp_path)[: len(before)] == before
    assert indices(tmp_path) == [list(range(8 * phase, 8 * phase + 8)) for phase in range(5)]
    rows = recorded(tmp_path)
    assert len({(row["prompt_index"], row["sample"]) for row in rows}) == len(rows) == 5 * 8 * 2


@pytest.mark.slow
def test_places_of_dropped_groups_are_refilled_from_the_stream(tmp_path: Path) -> None:
    filled = ("rollout.drop_equal_groups=true", "rollout.generation_batches=4", "rollout.group_size=4")
    ahead(tmp_path, 1, *filled)
    for phase in range(5):
        rows = recorded(tmp_path, 2 * phase)
        groups = {row["prompt_index"] for row in rows}
        assert len(groups) == 8
        rewards = {index: {row["reward"] for row in rows if row["prompt_index"] == index} for index in groups}
        assert all(len(held) > 1 for held in rewards.values())
    every = [(row["prompt_index"], row["sample"]) for row in recorded(tmp_path)]
    assert len(every) == len(set(every))


def test_drawing_ahead_needs_an_engine_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("fit", *COMMON, "rollout.max_lag=1")) == 2
    assert "rollout.max_lag above 0 needs an engine that draws in processes of its own" in capsys.readouterr().err
    assert issubclass(ConfigError, ValueError)
