"""Kill -9 at random moments, Ctrl-C, a full disk while saving, a small TMPDIR: every run ends as if nothing had been."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
from endurance import ON_RANKS, SETTINGS, Endurance, assert_same_run, books, reached, rollouts, small_disk
from lives import Life
from training import widest_difference

log = logging.getLogger(__name__)


def unbroken(folder: Path, ranks: int, *settings: str) -> Path:
    arguments = ["fit", *SETTINGS, *ON_RANKS[ranks], *settings, f"output_dir={folder / 'unbroken'}"]
    assert Life(arguments, ranks, folder / "unbroken.txt", {}).wait(600) == [0] * ranks
    return folder / "unbroken"


def endure(folder: Path, ranks: int, kills: int, seed: int) -> Endurance:
    """Runs until so many sessions were killed, each compared with the unbroken one."""
    whole = unbroken(folder, ranks)
    endurance = Endurance(seed, folder)
    with small_disk(folder / "tmp", 2):
        while endurance.counts["kill"] < kills:
            number = endurance.counts["runs"]
            left = kills - endurance.counts["kill"]
            assert_same_run(endurance.run(number, ranks, left, {"TMPDIR": str(folder / "tmp")}), whole)
    log.warning("%s rank(s), seed %s: %s", ranks, seed, json.dumps(endurance.counts))
    return endurance


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2])
def test_thirty_kills(ranks: int, tmp_path: Path) -> None:
    counts = endure(tmp_path, ranks, 30, 20 + ranks).counts
    assert counts["kill"] == 30
    assert min(counts["ctrl_c"], counts["runs"]) >= 3


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    assert endure(tmp_path, 1, 3, 7).counts["kill"] == 3


@pytest.mark.soak
def test_from_two_ranks_to_one_and_back(tmp_path: Path) -> None:
    """Killed in mid-epoch each time, and resumed by the other number of ranks."""
    # Adam divides rounding by small gradients: at this rate a step moves a weight by at most its hundredfold.
    gentle = "optim.lr=1e-5"
    whole, folder = unbroken(tmp_path, 2, gentle), tmp_path / "run"
    arguments = ["fit", *SETTINGS, gentle, f"output_dir={folder}"]
    for ranks, until in ((2, 6), (1, 11), (2, 13), (1, 99)):
        own = ("strategy=ddp", f"trainer.devices={ranks}")
        life = Life([*arguments, *own], ranks, tmp_path / "said.txt", {})
        life.until(lambda until=until: reached(folder / "checkpoints", "step_*") >= until)  # type: ignore[misc]
        if until < 99:
            assert life.alive
            life.send(signal.SIGKILL)
        codes = life.wait()
        assert codes == ([0] if until == 99 else [-signal.SIGKILL] * ranks)
        arguments = ["fit", f"resume={folder}"]
    mine, theirs = rollouts(folder), rollouts(whole)
    assert mine.keys() == theirs.keys()
    for name, responses in mine.items():
        for one, two in zip(responses, theirs[name], strict=True):
            for key in ("prompt_index", "sample", "prompt_token_ids", "token_ids", "reward"):
                assert one[key] == two[key], (name, key)
    difference = widest_difference(folder, whole)
    log.warning("weights and moments differ by at most %g", difference)
    assert difference < 1e-6
    assert [row["step"] for row in books(folder)] == [row["step"] for row in books(whole)]
    for row, other in zip(books(folder), books(whole), strict=True):
        for column, value in other.items():
            assert float(row[column]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), column
