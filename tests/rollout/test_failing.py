"""Too many errors of a verifier: all ranks stop, with one line and three examples, or none does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training import SMALL

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import VerifierError
from rlvr_lightning.rollout.failing import check_errors
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, Verdict


def rollouts(errors: int, others: int, rank: int = 0) -> list[Rollout]:
    def one(place: int) -> Rollout:
        prompt = Prompt(Problem(f"r{rank}p{place}", (), "4"), (1,), 0)
        return Rollout(prompt, 0, Episode.of(Generation((2,), (-0.5,), "stop", 0)), "", None, "KeyError: 'x'", "error")

    fine = replace(one(0), verdict=Verdict(0.0, False), error=None, kind="wrong")
    late = replace(one(0), error="TimeoutError: ", kind="timeout")
    return [late, fine] * (others // 2) + [one(place) for place in range(errors)]


def message(errors: int, others: int, share: float) -> str | None:
    try:
        check_errors(rollouts(errors, others), share)
    except VerifierError as error:
        return str(error)
    return None


def test_above_the_share_and_not_at_it() -> None:
    assert message(1, 20, 0.05) is None
    assert message(5, 96, 0.05) is None
    assert message(0, 0, 0.0) is None
    assert message(4, 4, 1.0) is None
    assert message(6, 94, 0.05) == (
        "the verifier failed on 6 of 100 responses (6%), more than grading.max_error_share=0.05 allows; for instance "
        "problem r0p0: KeyError: 'x'; problem r0p1: KeyError: 'x'; problem r0p2: KeyError: 'x'"
    )
    assert (message(1, 98, 0.0) or "").endswith("for instance problem r0p0: KeyError: 'x'")


def _rank(rank: int, file: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    told: list[str | None] = []
    # All errors are the last rank's: alone it would stop the run at 10 %, with the others' responses it does not.
    for share in (0.1, 0.05):
        try:
            check_errors(rollouts(2 if rank == 2 else 0, 10, rank), share)
            told.append(None)
        except VerifierError as error:
            told.append(str(error))
    torch.save(told, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_decide_alike(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0][0] is None
    assert "failed on 2 of 32 responses (6%)" in found[0][1]
    assert "problem r2p0" in found[0][1]


class Broken:
    """Cannot judge some problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.ids = {problem.id for problem in problems}

    def __call__(self, response: str, problem: Problem) -> Verdict:
        if problem.id in self.ids:
            raise RuntimeError("no judge today")
        return Verdict(0.0, False)


@pytest.mark.parametrize("validated", [False, True])
def test_a_run_stops(tmp_path: Path, validated: bool) -> None:
    settings: list[Any] = [*SMALL, "conf=grpo", "rollout.prompts_per_step=8", f"output_dir={tmp_path}"]
    run = build_run(compose([*settings, "task.num_held_out=4" if validated else "task.num_held_out=0"]))
    run.data.verifier = Broken(run.data.task.held_out() if validated else run.data.task.train())
    with pytest.raises(VerifierError, match=re.escape(f"failed on {8 if validated else 32} of")) as caught:
        run.fit()
    assert str(caught.value).count("RuntimeError: no judge today") == 3
