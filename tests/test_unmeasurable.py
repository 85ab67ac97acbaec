"""What cannot be measured is told in a line by `test benchmark=[...]` and by `fit`."""

from __future__ import annotations

from pathlib import Path

import pytest
from measuring import arguments, laid_out
from training import SMALL

from rlvr_lightning.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laid_out(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("benchmark=[gsm8]",), "there is no benchmark=gsm8; did you mean gsm8k?"),
        (("benchmark=[sums]", "evaluation.folder=nowhere"), "nowhere/sums.jsonl does not exist"),
        (("benchmark=[sums]", "evaluation.folder=null"), "sums.jsonl is on no hub"),
        (
            ("benchmark=[sums]", "evaluation.max_new_tokens=9999"),
            "positions of tiny: set benchmark.sums.max_new_tokens lower",
        ),
        (("benchmark=[sums]", "evaluation.models=[nowhere/at/all]"), "model.path=nowhere/at/all does not exist"),
        (("benchmark=[sums]", "evaluation.batch_responses=0"), "evaluation.batch_responses must be at least 1"),
        (("benchmark=[sums]", "evaluation.samples=two"), "evaluation.samples must be a whole number; got 'two'"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    place: Path, tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("test", *arguments(place, f"output_dir={tmp_path / 'out'}", *more))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("more", [("benchmark=[sums]",), ("evaluation.every_n_steps=2",)])
def test_fit_needs_both_benchmarks_and_how_often(
    place: Path, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("fit", *SMALL, *arguments(place, f"output_dir={tmp_path / 'out'}", *more))) == 2
    assert "benchmark=[NAME,...] and evaluation.every_n_steps=N go together" in capsys.readouterr().err
