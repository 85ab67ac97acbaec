"""What the runs of a study come to, by hand, and what the report says of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.image import imread
from studies import METHODS, spec

from rlvr_lightning.callbacks.table import MetricsTable
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.study.figures import draw_figures, side_by_side
from rlvr_lightning.study.pulls import Pull, pulls
from rlvr_lightning.study.report import write_report
from rlvr_lightning.study.runs import Ended, comparisons, summaries
from rlvr_lightning.study.spec import FINISHED, RUNS, Method


def ended(method: str, seed: int, *accuracies: float, probe: float | None = None) -> Ended:
    points = [(10 * (place + 1), value) for place, value in enumerate(accuracies)]
    series = {"val/avg_at_k": points, "val/pass_at_k": [(step, min(1.0, value + 0.1)) for step, value in points]}
    return Ended(method, seed, series if probe is None else {**series, "val/probe/p": [(10, 1.0), (20, probe)]})


def test_a_method_is_summed_up_by_hand() -> None:
    runs = [
        ended("a", 1, 0.4, 0.8, 0.6, probe=0.2),
        ended("a", 2, 0.4, 0.4, 0.2, probe=0.4),
        ended("a", 3, 0.5, 0.5, 0.5),
    ]
    (found,) = summaries(spec(probe="p"), runs)
    assert found.seeds == [1, 2, 3]
    assert found.accuracy == pytest.approx(1.3 / 3)
    assert found.spread == pytest.approx(
        ((0.6 - 1.3 / 3) ** 2 + (0.2 - 1.3 / 3) ** 2 + (0.5 - 1.3 / 3) ** 2) ** 0.5 / 2**0.5
    )
    assert found.any_right == pytest.approx(1.6 / 3)
    # Trapezoids: (0.6 + 0.7) / 2, (0.4 + 0.3) / 2, 0.5.
    assert found.area == pytest.approx((0.65 + 0.35 + 0.5) / 3)
    # Above one half, not at it.
    assert found.escaped == 1
    assert found.share == pytest.approx((0.0084, 0.9057), abs=1e-4)
    assert found.probe == pytest.approx(0.3)
    assert summaries(spec(), [ended("b", 1, 0.5)])[0].probe is None
    # What was measured before training is left out, unless no step was ever taken.
    begun = {**ended("b", 1, 0.6, 0.8).series, "val/avg_at_k": [(0, 0.1), (10, 0.6), (20, 0.8)]}
    assert Ended("b", 1, begun).area == pytest.approx(0.7)
    assert Ended("b", 1, {**begun, "val/avg_at_k": [(0, 0.1)]}).area == 0.1


def test_methods_are_compared_over_the_seeds_both_have() -> None:
    runs = [ended("a", seed, 0.1 * seed) for seed in (1, 2, 3)]
    runs += [ended("b", 1, 0.5), ended("b", 3, 0.4), ended("b", 9, 1.0)]
    (found,) = comparisons(spec(), runs)
    assert (found.method, found.pairs) == ("b", 2)
    assert found.difference == pytest.approx((0.4 + 0.1) / 2)
    assert found.p_value == 0.5
    assert math.isnan(found.corrected)
    assert not found.claimed
    many = [ended("a", seed, 0.1) for seed in range(10)] + [ended("b", seed, 0.2 + seed / 100) for seed in range(10)]
    (found,) = comparisons(spec(), many)
    assert (found.p_value, found.corrected, found.claimed) == (2 / 1024, 2 / 1024, True)
    # A second with as many pairs is paid for, one with five is not.
    methods = {**METHODS, "c": Method([]), "d": Method([])}
    others = [ended("c", seed, 0.1 + seed / 100) for seed in range(10)] + [ended("d", seed, 0.9) for seed in range(5)]
    compared = {one.method: one for one in comparisons(spec(methods=methods), [*many, *others])}
    assert compared["b"].corrected == 2 * compared["b"].p_value
    assert math.isnan(compared["d"].corrected)
    assert not compared["d"].claimed


def with_entropy(run: Ended, *values: float) -> Ended:
    return Ended(run.method, run.seed, {**run.series, "policy/entropy": list(enumerate(values, 1))})


def test_methods_are_compared_by_other_numbers_too(tmp_path: Path) -> None:
    # The last tenth of twenty are two, of three it is one.
    runs = [with_entropy(ended("a", seed, 0.5), *[9.0] * 18, 0.1, 0.3) for seed in range(10)]
    runs += [with_entropy(ended("b", seed, 0.6), 9.0, 9.0, 1.2) for seed in range(10)]
    methods = {"a": Method([], range(10)), "b": Method([], range(11))}
    study = spec(methods=methods, also={"entropy": "policy/entropy", "pass@k": "val/pass_at_k"})
    found = {one.method: one.also for one in summaries(study, [*runs, ended("b", 10, 0.6)])}
    assert found["a"] == pytest.approx({"entropy": 0.2, "pass@k": 0.6})
    # A run that has none is left out.
    assert found["b"] == pytest.approx({"entropy": 1.2, "pass@k": 0.7})
    assert math.isnan(summaries(study, [ended("a", 1, 0.5)])[0].also["entropy"])
    compared = {one.of: one for one in comparisons(study, runs)}
    assert list(compared) == ["avg@k", "entropy", "pass@k"]
    assert [one.difference for one in compared.values()] == pytest.approx([0.1, 1.0, 0.1])
    # One family: the smallest of three is paid for three times.
    assert [one.corrected for one in compared.values()] == [6 / 1024] * 3
    for run in runs:
        folder = tmp_path / RUNS / run.method / f"seed_{run.seed}"
        write_metrics(folder, run)
    text = write_report(study, tmp_path).read_text()
    assert "at 0.05: b, b (entropy), b (pass@k)." in text
    assert "; entropy, pass@k: the mean over the last tenth of what was logged. A run" in text
    assert "| a | 10 | 0.500 | 0.000 | 0.600 | 0.500 | 0 of 10 | 0.00 to 0.31 | 0.200 | 0.600 |" in text
    assert "## Against a: entropy\n\n| method | pairs | difference | p | corrected p |  |\n" in text
    assert "| b | 10 | +1.000 | 0.0020 | 0.0059 | differs |" in text
    with pytest.raises(
        ConfigError, match="study.also.x=policy/entropi was logged by no run; did you mean policy/entropy"
    ):
        write_report(spec(methods=methods, also={"x": "policy/entropi"}), tmp_path)


def write_metrics(folder: Path, run: Ended) -> None:
    """As a finished run leaves it."""
    table = MetricsTable(folder)
    table.file.parent.mkdir(parents=True)
    table.open()
    for name, points in run.series.items():
        for step, value in points:
            table.log_metrics({name: value}, step)
    (folder / FINISHED).write_text("{}")


def test_pulls_are_summed_up_by_hand() -> None:
    def run(method: str, seed: int, *values: float) -> Ended:
        points = [(place, value) for place, value in enumerate(values)]
        named = {"policy/force/lp_reg": points, "policy/force_sampled/lp_reg": [(0, 2 * values[0])]}
        more = {"policy/force/other": [(0, 1.0)], "policy/force_sampled/other": [(0, 3.0)]}
        return Ended(method, seed, {**named, **more, "policy/force/lp_reg/term": [(0, 9.0)]})

    late = [0.5] * 18 + [3.0, 5.0]
    runs = [run("b", 1, 1.0, 2.0, *late), run("b", 3, 7.0, 7.0, 7.0), run("b", 9, 0.0, 2.0), Ended("a", 1, {})]
    found, other = pulls(spec(), runs)
    # A tenth of 22 measurements are two, of three and of two it is one.
    assert found == Pull("b", "lp_reg", early=1.5, late=4.0, sampled=2.0)
    assert other == Pull("b", "other", 1.0, 1.0, 3.0)
    (unsampled,) = pulls(spec(), [Ended("a", 1, {"policy/force/x": [(0, 2.0)]})])
    assert (unsampled.early, unsampled.late) == (2.0, 2.0)
    assert math.isnan(unsampled.sampled)


def test_a_step_of_which_a_run_has_nothing_to_tell_lies_between_its_neighbours() -> None:
    steps, values = side_by_side([[(1, 1.0), (2, 5.0), (3, 2.0), (5, 4.0)], [(2, 0.0), (4, 1.0), (5, 3.0), (6, 9.0)]])
    assert steps == [2, 3, 4, 5]
    assert values.tolist() == [[5.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.0, 3.0]]


@pytest.mark.parametrize(
    ("shown", "drawn"),
    [([], ["curves_1.png"]), (["a"], ["shown.png", "curves_1.png"]), (["a", "b"], ["shown.png"])],
)
def test_what_is_shown_as_a_whole_is_not_drawn_twice(shown: list[str], drawn: list[str], tmp_path: Path) -> None:
    runs = [Ended(name, 1, {"val/avg_at_k": [(1, 0.5), (2, 0.6)]}) for name in METHODS]
    assert [path.name for path in draw_figures(spec(shown=shown), runs, tmp_path)] == drawn


@pytest.mark.parametrize(
    ("also", "panels"),
    [({}, 2), ({"pass@k": "val/pass_at_k"}, 3), ({"entropy": "policy/entropy"}, 2)],
)
def test_further_numbers_have_a_panel_unless_they_have_one_already(
    also: dict[str, str], panels: int, tmp_path: Path
) -> None:
    runs = [with_entropy(ended(name, 1, 0.5, 0.6), 0.3, 0.2) for name in METHODS]
    (path,) = draw_figures(spec(also=also), runs, tmp_path)
    assert imread(path).shape[1] == round(5.2 * 110) * panels
