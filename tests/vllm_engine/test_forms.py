"""Real vLLM in each of its forms: twenty steps learn in process, and every other form's ten are the first of these.

Engine and trainer agree after every sync.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_lightning.callbacks.table import Row, read_table
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed
from rlvr_lightning.rollout.recorded import read_recorded

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_installed(), reason="vllm is not installed: nox -s vllm installs it"),
]
SMALL = (
    "conf=grpo",
    "trainer.accelerator=cpu",
    "trainer.val_every_n_epochs=20",
    "trainer.show_every_n_epochs=0",
    "rollout.prompts_per_epoch=8",
    "rollout.prompts_per_step=8",
    "rollout.eval_samples=2",
    "task.num_held_out=2",
    "task.num_train=400",
    # Twenty small steps show a gain that chance does not make.
    "optim.lr=5e-4",
)
FIRST, STEPS, OTHERS_STEPS = "in process", 20, 10
TWO_RANKS = ("trainer.devices=2", "strategy=ddp")
FORMS = {
    FIRST: ("engine=vllm",),
    "an engine on each of two ranks": ("engine=vllm", *TWO_RANKS),
    "one engine over two ranks": ("engine=vllm", "engine.tensor_parallel=2", *TWO_RANKS),
    "a tensor-parallel server": ("engine=vllm_server", "engine.tensor_parallel=2"),
    "two servers": ("engine=vllm_server", "engine.servers=2"),
}
Runs = dict[str, Path]


def steps_of(kind: str) -> int:
    return STEPS if kind == FIRST else OTHERS_STEPS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("kinds")
    found = {}
    for number, (kind, overrides) in enumerate(FORMS.items()):
        found[kind] = folder / str(number)
        what = (*SMALL, *overrides, f"trainer.max_epochs={steps_of(kind)}", f"output_dir={found[kind]}")
        command = [sys.executable, "-m", "rlvr_lightning", "fit", *what]
        subprocess.run(command, check=True, timeout=600)
    return found


def rows(folder: Path) -> list[Row]:
    return [row for row in read_table(folder / "logs" / "metrics.csv") if "reward/mean" in row]


def test_it_learns(runs: Runs) -> None:
    rewards = [float(row["reward/mean"]) for row in rows(runs[FIRST])]
    # Means of 320 responses each: one standard deviation of their difference is at most 0.04.
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


@pytest.mark.parametrize("kind", FORMS)
def test_it_agrees_with_the_trainer(kind: str, runs: Runs) -> None:
    table = rows(runs[kind])
    assert len(table) == steps_of(kind)
    assert max(float(row["rollout/canary_gap_max"]) for row in table) < 1e-4
    assert max(float(row["rollout/logprob_gap_max"]) for row in table) < 1e-4
    assert {row.get("engine/refused", "0.0") for row in table} == {"0.0"}


def test_all_of_them_draw_the_same_and_learn_the_same(runs: Runs) -> None:
    first = rows(runs[FIRST])
    for kind in FORMS:
        for mine, theirs in zip(rows(runs[kind]), first[: steps_of(kind)], strict=True):
            for name in ("reward/mean", "policy/entropy", "rollout/response_tokens"):
                assert float(mine[name]) == pytest.approx(float(theirs[name]), abs=1e-5), (kind, name)
    drawn = {kind: responses(runs[kind]) for kind in FORMS}
    assert len(drawn[FIRST]) == STEPS * 8 * 8
    for kind, held in drawn.items():
        assert len(held) == steps_of(kind) * 8 * 8
        assert held.keys() <= drawn[FIRST].keys()
    others = drawn["two servers"]
    assert others == {name: drawn[FIRST][name] for name in others}


def responses(folder: Path) -> dict[tuple[int, int], list[int]]:
    return {(row["prompt_index"], row["sample"]): row["token_ids"] for row in read_recorded(folder / "rollouts")}
