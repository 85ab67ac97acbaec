"""The benchmarks work in miniature, and their page says what they found."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import growth, head, methods, page  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import Case, coin, make  # noqa: E402
from benchmarks.turns import Measured, Worker, take_turns  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _found_by_workers() -> Any:
    """Their processes begin where the tests do, which need not be the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = make(tmp_path_factory.mktemp("model") / "small", vocabulary=64, hidden=32, layers=1, heads=2)
    return Case(folder, prompts=2, group_size=4, length=8)


def test_a_table_is_kept_as_it_was_found(tmp_path: Path) -> None:
    table = page.Table("step", "Title", "Note.", ("", "s"), [["a", "1.0"]], page.Plot("x", "y", {"l": [(1, 2.0)]}))
    page.Found(table).save(tmp_path)
    (again,) = page.results(["step", "head"], tmp_path)
    shown = page.render([again])
    assert "| a | 1.0 |" in shown
    assert "`python -m benchmarks step` on " in shown
    assert f"Python {sys.version.split()[0]}, torch " in shown
    assert again.table.plot is not None
    page.draw(again.table.plot, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_ratios_are_of_neighbouring_turns() -> None:
    slow, fast = Measured((10.0, 2.0, 30.0), 1, {}), Measured((5.0, 1.0, 10.0), 1, {})
    assert (slow.median, slow.against(fast)) == (10.0, 2.0)


def test_a_worker_that_ends_is_told_with_its_last_words() -> None:
    worker = Worker("benchmarks.head", ["no such way", "10", "10"])
    with pytest.raises(RuntimeError, match="KeyError: 'no such way'"):
        take_turns({"it": worker})
    assert worker._process.poll() is not None


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["stap"])
    assert "no benchmark is called stap: there are step, head" in capsys.readouterr().err


def test_a_coin_falls_on_both_sides() -> None:
    assert {coin(f"w{number}", "1") for number in range(20)} == {0.0, 1.0}


def test_all_methods_are_measured() -> None:
    assert len(methods.names()) == 33
    assert {"grpo", "archer", "lp_reg", "archer_random"} <= set(methods.names())


def test_every_way_through_the_head_takes_its_turns() -> None:
    found = head.turns([head.PLAIN, *head.OURS, head.TORCH], 40, 16, 2)
    assert all(len(one.seconds) == 2 for one in found.values())


@pytest.mark.slow
def test_methods_and_growth_in_miniature(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "names", lambda: ["archer", "grpo", "gspo"])
    monkeypatch.setattr(methods, "Case", lambda folder, prompts: case)
    table = methods.measure(case.folder, 1)
    assert {row[0] for row in table.rows} == {"`grpo` again, lowest to highest of 1", "`archer`", "`gspo`"}
    cases = {"4k": case, "cut": replace(case, micro_batches=2)}
    monkeypatch.setattr(growth, "CASES", {**cases, "16k": case})
    grown = growth.measure(case.folder, 1)
    assert [row[0] for row in grown.rows] == ["4k", "cut", "16k", growth.RANKS]
    # A turn is a step: of one more micro-batch, the same tokens.
    assert all(float(row[4]) > 0.1 for row in grown.rows)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["fit", "engine=transformers"], ["--help"]])
def test_commands_start(arguments: list[str]) -> None:
    from benchmarks.start import _seconds

    assert _seconds(arguments) > 0
    with pytest.raises(subprocess.CalledProcessError):
        _seconds([*arguments, "engin=vllm"] if "fit" in arguments else ["--hilfe"])


def test_the_page_is_that_of_the_results() -> None:
    from benchmarks.__main__ import BENCHMARKS

    found = page.results(list(BENCHMARKS))
    assert found
    assert (page.DOCS / "benchmarks.md").read_text() == page.render(found)
    for one in found:
        assert (page.DOCS / f"benchmarks_{one.table.name}.png").exists() == (one.table.plot is not None)
