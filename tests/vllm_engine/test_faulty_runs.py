"""Whole runs over stub servers: they learn what a run in process does, and stop or go on where a server is not what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from stub import Stub
from training import SMALL, fit, last_checkpoint, recorded

from rlvr_lightning.callbacks.table import read_table
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import RolloutError
from rlvr_lightning.training.checkpoint_io import newest

ON_POLICY = ("conf=grpo", "rollout.prompts_per_step=8")


def over(*stubs: Stub, **settings: str) -> tuple[str, ...]:
    urls = ",".join(stub.url for stub in stubs)
    given = (f"engine.urls=[{urls}]", "engine.transfer_folder=/tmp", *(f"engine.{k}={v}" for k, v in settings.items()))
    return ("engine=vllm_server", *ON_POLICY, *given)


@pytest.mark.slow
def test_a_run_over_servers_draws_and_learns_what_one_in_process_does(stub: Stub, other: Stub, tmp_path: Path) -> None:
    mine = [item for item in SMALL if not item.startswith("engine=")]
    build_run(compose([*mine, *over(stub, other), f"output_dir={tmp_path / 'servers'}"])).fit()
    fit(tmp_path / "plain", *ON_POLICY)
    one, two = recorded(tmp_path / "servers"), recorded(tmp_path / "plain")
    assert [row["token_ids"] for row in one] == [row["token_ids"] for row in two]
    weights = last_checkpoint(tmp_path / "servers"), last_checkpoint(tmp_path / "plain")
    assert (
        max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0] if "exp_avg" not in name)
        < 1e-4
    )
    for server in (stub, other):
        # Before training, after each of two steps: once a policy.
        assert server.updates == 3
        assert server.calls.count("pause") == server.calls.count("resume") == 3
        first = server.calls[: server.calls.index("resume") + 1]
        assert (first[:2], first[-3:-1]) == (
            ["pause", "start_weight_update"],
            ["finish_weight_update", "reset_prefix_cache"],
        )
    rows = read_table(tmp_path / "servers" / "logs" / "metrics.csv")
    assert {float(row["engine/retries"]) for row in rows if "engine/retries" in row} == {0.0}
    assert max(float(row["rollout/canary_gap_max"]) for row in rows if "rollout/canary_gap_max" in row) < 1e-4


def test_a_weight_that_does_not_arrive_stops_the_run_before_a_step_is_taken(stub: Stub, tmp_path: Path) -> None:
    mine = [item for item in SMALL if not item.startswith("engine=")]
    run = build_run(compose([*mine, *over(stub), f"output_dir={tmp_path}", "trainer.save_every_n_steps=1"]))
    name = "model.layers.1.self_attn.k_proj.weight"

    def drop(*args: Any) -> None:
        stub.dropped = {name}

    run.module.on_train_batch_start = drop  # type: ignore[method-assign]
    with pytest.raises(
        RolloutError, match=rf"after the sync at step 1 the engine draws from another .*: suspect {name}; "
    ):
        run.fit()
    assert run.module.policy_version == 1
    # What was learned before is kept.
    assert newest(tmp_path / "checkpoints").name == "step_00000001"


@pytest.mark.slow
def test_a_server_restarted_by_hand_in_the_middle_of_a_run(stub: Stub, tmp_path: Path) -> None:
    mine = [item for item in SMALL if not item.startswith("engine=")]
    run = build_run(compose([*mine, *over(stub), f"output_dir={tmp_path}"]))
    forgot = False

    async def fault(number: int) -> web.StreamResponse | None:
        nonlocal forgot
        if stub.updates == 2 and number % 7 == 0 and not forgot:
            forgot = True
            stub.forget()
        return None

    stub.fault = fault
    run.fit()
    assert forgot
    assert stub.updates == 4
    rows = recorded(tmp_path)
    assert len({(row["prompt_index"], row["sample"]) for row in rows}) == len(rows) == 2 * 8 * 4
    assert {(row["phase"], row["policy_version"]) for row in rows} == {(0, 0), (1, 1)}
    logged = [
        float(row["engine/refused"]) for row in read_table(tmp_path / "logs" / "metrics.csv") if "engine/refused" in row
    ]
    assert sum(logged) >= 1
