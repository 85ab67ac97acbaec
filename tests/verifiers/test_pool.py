"""The pool with real processes: hung, killed, dying ones; equal verdicts whatever their number."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from verifiers.pooled import Scripted, Unmakeable, Waiting
from verifiers.pools import Open, children, judged, opening, problem

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier
from rlvr_lightning.verifiers.math import MathVerifier
from rlvr_lightning.verifiers.pool import MOST_LANES, VerifierPool


@pytest.fixture
def opened() -> Iterator[Open]:
    with opening() as make:
        yield make


def test_verdicts_come_in_order_from_other_processes(opened: Open) -> None:
    pool = opened(Scripted(), workers=2)
    four, late, none, broken = judged(pool, "4", "sleep 0.5", "none", "raise no\nmood")
    assert four.verdict is not None
    assert (four.kind, four.verdict.reward, four.verdict.parts) == ("correct", 0.125, {"length": 1})
    assert (late.kind, none.kind, broken.kind) == ("wrong", "unparsable", "error")
    assert (broken.verdict, broken.error) == (None, "RuntimeError: no")
    assert 0.5 <= late.seconds < 30
    pids = {one.verdict.extracted for one in (four, late) if one.verdict is not None}
    assert str(os.getpid()) not in pids
    assert len(pids) == 2


def test_what_a_verifier_prints_is_no_answer(opened: Open, capfd: pytest.CaptureFixture[str]) -> None:
    assert [one.kind for one in judged(opened(Scripted(), workers=1), "print {}", "4")] == ["wrong", "correct"]
    assert "{}" in capfd.readouterr().err


@pytest.mark.parametrize("hang", ["spin", "power", "sleep 600"])
def test_a_hung_answer_holds_up_its_own_worker_alone(opened: Open, hang: str) -> None:
    pool = opened(Scripted(), workers=2, timeout_s=300.0)
    hung = pool.submit(hang, problem())
    others = pool.collect([pool.submit(f"wrong {place}", problem()) for place in range(40)])
    assert {one.kind for one in others} == {"wrong"}
    assert len({one.verdict.extracted for one in others if one.verdict is not None}) == 1
    assert not hung.done()


@pytest.mark.parametrize("hang", ["spin", "power", "sleep 600"])
def test_a_hung_worker_is_replaced_after_its_time(opened: Open, hang: str) -> None:
    pool = opened(Scripted(), workers=1, timeout_s=2.0)
    ended, other = judged(pool, hang, "5")
    assert (ended.kind, ended.verdict) == ("timeout", None)
    assert ended.error == "VerifierTimeoutError: no verdict within 2 s"
    assert ended.seconds >= 2.0
    assert other.kind == "wrong"


def test_a_worker_that_dies_of_an_answer_is_an_error_of_that_answer(opened: Open, tmp_path: Path) -> None:
    pool = opened(Scripted(str(tmp_path / "log")), workers=1)
    kinds = [one.kind for one in judged(pool, "4", "exit 3", "5", "exit 0", "4 ")]
    assert kinds == ["correct", "error", "wrong", "error", "wrong"]
    (died, _) = judged(pool, "exit 3", "4")
    assert died.error == f"VerifierError: the process of {'rlvr_lightning.verifiers.pool_worker'} died (exit code 3)"
    calls = Counter(line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines())
    assert calls == {"4": 1, "exit 3": 2, "5": 1, "exit 0": 2, "4 ": 1}


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_worker_costs_no_verdict(opened: Open, busy: bool) -> None:
    pool = opened(Scripted(), workers=1)
    judged(pool, "4")
    (worker,) = children()
    futures = [pool.submit("sleep 0.5", problem()), pool.submit("5", problem())] if busy else []
    time.sleep(0.2)
    worker.kill()
    assert [one.kind for one in pool.collect(futures)] == ["wrong"] * len(futures)
    assert [one.kind for one in judged(pool, "4", "6")] == ["correct", "wrong"]


def test_equal_answers_to_one_problem_are_judged_once_in_a_phase(opened: Open, tmp_path: Path) -> None:
    for workers in (0, 2):
        log = tmp_path / f"log{workers}"
        pool = opened(Scripted(str(log)), workers=workers)
        same = [pool.submit("4", problem()) for _ in range(5)]
        other = [pool.submit("4", problem("4", "p2")), pool.submit("4", problem("5")), pool.submit("5", problem())]
        assert [one.kind for one in pool.collect([*same, *other])] == ["correct"] * 6 + ["wrong"] * 2
        assert len(log.read_text().splitlines()) == 4
        pool.forget()
        judged(pool, "4", "4")
        assert len(log.read_text().splitlines()) == 5


def test_verdicts_do_not_depend_on_the_number_of_workers(opened: Open) -> None:
    answers = [rf"\boxed{{{text}}}" for text in ("0.5", r"\frac{1}{2}", "2/4", r"\sqrt{2}/2", "", "x", "1,2", "0.51")]
    responses = [*answers, "nothing", "The answer is one half.", *answers[::-1]]
    found = []
    for workers in (0, 1, 2):
        pool = opened(MathVerifier(timeout_s=60.0), workers=workers, timeout_s=300.0)
        half = [pool.submit(response, problem(r"\frac{1}{2}")) for response in responses]
        found.append([(one.kind, one.verdict, one.error) for one in pool.collect(half)])
    assert found[0] == found[1] == found[2]
    assert Counter(kind for kind, _, _ in found[0]) == {"correct": 6, "wrong": 9, "unparsable": 3}


def test_who_is_called_where(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(Scripted):
        """Cannot be pickled."""

    here = {0, 1, 2, 3} if sys.platform != "linux" else os.sched_getaffinity(0)
    assert opened(ExactVerifier()).num_processes == 0
    assert opened(ExactVerifier(), workers=3).num_processes == 3
    assert opened(Scripted()).num_processes == min(8, len(here))
    assert opened(Scripted(), ranks=1000).num_processes == 1
    assert opened(Local()).num_processes == 0
    monkeypatch.setattr(Scripted, "__module__", "__main__")
    assert opened(Scripted()).num_processes == 0
    with pytest.raises(ConfigError, match="grading.workers=2 needs a verifier that can be pickled.*Local is not"):
        opened(Local(), workers=2)


def test_a_verifier_that_waits_is_called_in_threads(opened: Open) -> None:
    pool = opened(Waiting())
    began = time.perf_counter()
    found = judged(pool, *"12345678")
    assert 1.0 <= time.perf_counter() - began < 3.5
    assert {one.verdict for one in found} == {Verdict(1.0, True, str(os.getpid()))}


def test_a_verifier_that_cannot_be_made_in_a_worker_is_refused(opened: Open) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made in a worker process \(OSError: no such model\)"):
        judged(opened(Unmakeable(), workers=1), "4")


def test_hung_ones_hold_up_no_other(opened: Open) -> None:
    """With one worker three responses that never end keep none of the others waiting."""
    pool = opened(Scripted(), workers=1, timeout_s=300.0)
    judged(pool, "4")
    for place in range(3):
        pool.submit(f"sleep 60{place}", problem())
    found = judged(pool, *(f"{place}" for place in range(20)))
    assert [one.kind for one in found] == ["correct" if place == 4 else "wrong" for place in range(20)]
    # One at work, and one for each that was held up.
    assert len(children()) == 4


class Slow(Scripted):
    """Takes longer to start than any response should."""

    def start(self) -> None:
        time.sleep(2.5)


def test_starting_holds_up_nobody(opened: Open) -> None:
    pool = opened(Slow(), workers=2)
    found = judged(pool, *(f"{place}" for place in range(6)))
    assert [one.kind for one in found] == ["correct" if place == 4 else "wrong" for place in range(6)]
    assert max(one.seconds for one in found) < 2
    assert len(children()) == 2


def test_there_is_an_end_to_the_workers_added(opened: Open) -> None:
    pool = opened(Scripted(), workers=1, timeout_s=3.0)
    judged(pool, "4")
    found = judged(pool, *(f"sleep 60{place}" for place in range(9)), "4")
    assert [one.kind for one in found] == ["timeout"] * 9 + ["correct"]
    assert len(children()) <= MOST_LANES


class NoRoom(VerifierPool):
    """A pool on a machine that starts no more processes."""

    def __init__(self) -> None:
        super().__init__(Scripted(), workers=1)

    def _start(self) -> Any:
        running = super()._start()

        def full() -> None:
            raise OSError(11, "no more processes")

        for server in running._servers:
            server.lane.start = full
        return running


def test_what_keeps_a_worker_from_starting_is_told() -> None:
    pool = NoRoom()
    with pytest.raises(OSError, match="no more processes"):
        judged(pool, "4")
    pool.close()
