"""What a benchmark consists of: its rows, its protocol, its window of time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.evaluation.benchmarks.benchmark import Benchmark, Hub, Window
from rlvr_lightning.verifiers.code.tests import read_tests
from rlvr_lightning.verifiers.exact import ExactVerifier

ROWS = [
    {"id": f"p{i}", "problem": f"{i}+1=", "answer": str(i + 1), "day": f"2025-01-{i + 1:02}T10:00:00"} for i in range(9)
]


def benchmark(**settings: Any) -> Benchmark:
    return Benchmark("sums.jsonl", ExactVerifier(), **{"samples": 2, "max_new_tokens": 8, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def names(benchmark: Benchmark, folder: Path | None) -> list[str]:
    return [problem.id for _, problem in benchmark.problems(folder)]


def test_all_problems_in_their_order(folder: Path) -> None:
    held = benchmark(template="Q: {problem}", system="Be brief.").problems(folder)
    assert [place for place, _ in held] == list(range(9))
    assert [problem.answer for _, problem in held] == [str(i + 1) for i in range(9)]
    assert held[3][1].messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 3+1="},
    )


def test_a_smaller_limit_chooses_among_the_larger_ones(folder: Path) -> None:
    chosen = {limit: benchmark(limit=limit).problems(folder) for limit in (3, 5, 9)}
    places = {limit: [place for place, _ in held] for limit, held in chosen.items()}
    assert [len(held) for held in places.values()] == [3, 5, 9]
    assert set(places[3]) < set(places[5]) < set(places[9])
    assert places[5] == sorted(places[5]) != list(range(5))
    assert all(problem.id == f"p{place}" for held in chosen.values() for place, problem in held)
    assert names(benchmark(limit=3, seed=1), folder) != names(benchmark(limit=3), folder)


def test_a_window_of_dates(folder: Path) -> None:
    assert names(benchmark(window=Window("day", "2025-01-03", "2025-01-05")), folder) == ["p2", "p3"]
    with pytest.raises(
        DataError, match=r"sums\.jsonl, line 1: field 'date' is no date, and the benchmark has a window"
    ):
        benchmark(window=Window("date", "2025-01-03", "2025-01-05")).problems(folder)
    with pytest.raises(DataError, match="has no rows"):
        benchmark(window=Window("day", "2024-01-03", "2024-01-05")).problems(folder)


def test_the_hub_has_other_names(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [{"key": f"h{i}", "question": f"{i}+2=", "solution": f"so\n#### {i + 2}"} for i in range(4)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub = Hub(str(tmp_path / "data"), None, "test", "question", "solution", "key", "#### *(.+)$")
    held = benchmark(hub=hub, limit=2).problems(None)
    assert [(problem.id, problem.answer) for _, problem in held] == [(f"h{place}", str(place + 2)) for place, _ in held]


@pytest.mark.parametrize(
    ("name", "row", "shown"),
    [
        (
            "humaneval",
            {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "test": "def check(f): ...", "entry_point": "f"},
            "def f(x):",
        ),
        (
            "mbpp",
            {"task_id": 11, "text": "Write f.", "test_list": ["assert f(1) == 2"]},
            "this test:\n\n```python\nassert f(1) == 2",
        ),
        ("gsm8k", {"question": "How many?", "answer": "so <<1+1=2>>\n#### 1,234"}, "How many?"),
        ("math500", {"unique_id": "test/7", "problem": "Find x.", "answer": "7"}, "Find x."),
    ],
)
def test_rows_of_the_hub_are_read_as_they_are(name: str, row: dict[str, Any], shown: str, tmp_path: Path) -> None:
    """The hub cannot be reached here: its rows stand in a folder under its name of the split."""
    pytest.importorskip("datasets")
    found = composed(name)
    assert found.hub is not None
    (tmp_path / f"{found.hub.split}.jsonl").write_text(json.dumps(row) + "\n")
    local = dataclasses.replace(found.hub, path=str(tmp_path), name=None)
    ((_, problem),) = benchmark_of(found, local).problems(None)
    assert shown in problem.messages[-1]["content"]
    assert problem.answer == {"gsm8k": "1,234", "math500": "7"}.get(name, "")
    if name in ("humaneval", "mbpp"):
        assert read_tests(problem.meta, name).kind == {"humaneval": "check", "mbpp": "asserts"}[name]


def benchmark_of(found: Benchmark, hub: Hub) -> Benchmark:
    protocol = found.protocol
    return Benchmark(
        found.file, found.verifier, protocol.samples, protocol.max_new_tokens, template=protocol.template, hub=hub
    )


def test_without_a_hub_a_folder_is_needed() -> None:
    with pytest.raises(DataError, match=r"sums\.jsonl is on no hub: .* evaluation\.folder=DIR"):
        benchmark().problems(None)


def test_a_hub_out_of_reach_has_a_way_around(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(
        DataError, match=r"cannot be loaded: .*; evaluation\.folder=DIR takes sums\.jsonl from a folder instead"
    ):
        benchmark(hub=Hub(str(tmp_path / "nowhere"))).problems(None)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_the_file_may_have_another_ending(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "sums.parquet")
    else:
        import gzip

        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        (tmp_path / "sums.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert names(benchmark(), tmp_path) == [f"p{i}" for i in range(9)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sums\.jsonl does not exist"):
        benchmark().problems(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples and max_new_tokens of a benchmark must be at least 1; got 0 and 8"),
        ({"max_new_tokens": 0}, "got 2 and 0"),
        ({"pass_k": 3}, "pass_k=3 of a benchmark must be in 1 to samples=2"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\]"),
        ({"limit": 0}, "limit of a benchmark must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark(**settings)


@pytest.mark.parametrize(("first", "before"), [("2025-02-01", "2025-02-01"), ("now", "2025-02-01")])
def test_a_window_must_be_one(first: str, before: str) -> None:
    with pytest.raises(ConfigError, match="window of a benchmark must"):
        Window("day", first, before)


# Protocols of the papers; what is drawn greedily once is this project's choice.
PROTOCOLS = {
    "aime24": (64, 0.8, 0.95, 32768),
    "aime25": (64, 0.8, 0.95, 32768),
    "amc23": (64, 0.8, 0.95, 32768),
    "math500": (4, 0.8, 0.95, 32768),
    "minerva": (8, 0.8, 0.95, 32768),
    "olympiad": (4, 0.8, 0.95, 32768),
    "gsm8k": (1, 0.0, 1.0, 1024),
    "humaneval": (1, 0.0, 1.0, 1024),
    "mbpp": (1, 0.0, 1.0, 1024),
    "livecodebench": (8, 0.8, 0.95, 32768),
    "livecodebench_v6": (16, 0.8, 0.95, 32768),
}
SIZES = {
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "math500": 500,
    "minerva": 272,
    "olympiad": 675,
    "gsm8k": 1319,
    "humaneval": 109,
    "mbpp": 650,
}


def composed(name: str, *overrides: str) -> Benchmark:
    held: Benchmark = component(compose([f"benchmark=[{name}]", *overrides]).benchmark, name)
    return held


def test_every_benchmark_has_its_protocol() -> None:
    assert {file.stem for file in (config_dir() / "benchmark").glob("*.yaml")} == set(PROTOCOLS)
    for name, numbers in PROTOCOLS.items():
        protocol = composed(name).protocol
        assert (protocol.samples, protocol.temperature, protocol.top_p, protocol.max_new_tokens) == numbers, name
        assert protocol.k == protocol.samples


@pytest.mark.parametrize("name", list(SIZES))
def test_real_files_are_read(name: str, shared_data: Path) -> None:
    held = composed(name).problems(shared_data)
    assert len(held) == SIZES[name]
    question = held[0][1].messages[-1]["content"]
    judged = "block of" if composed(name).described()["verifier"]["name"] == "CodeVerifier" else r"\boxed{}"
    assert judged in question
    assert "{problem}" not in question


def test_a_record_of_livecodebench(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "livecodebench.jsonl").write_bytes((shared_data / "livecodebench_format_sample.jsonl").read_bytes())
    sort, seniors, winner = (
        problem for _, problem in composed("livecodebench", "benchmark.livecodebench.window=null").problems(tmp_path)
    )
    assert (sort.id, seniors.id, winner.id) == ("1873_A", "2727", "abc301_a")
    assert "class Solution:\n    def countSeniors(" in seniors.messages[-1]["content"]
    assert "```python\n\n```" in sort.messages[-1]["content"]
    with pytest.raises(DataError, match="field 'contest_date' is no date"):
        composed("livecodebench").problems(tmp_path)


# Each setting of a benchmark's yaml, another value, and what it must change.
SETTINGS: dict[str, str] = {
    "samples": "3",
    "pass_k": "2",
    "temperature": "0.3",
    "top_p": "0.4",
    "max_new_tokens": "7",
    "system": "Speak.",
    "template": "'Q {problem}'",
    "verifier.extract": "boxed",
}


def test_every_setting_of_the_protocol_is_read() -> None:
    cfg = compose(["benchmark=[aime24]"])
    before = component(cfg.benchmark, "aime24").described()
    for key, value in SETTINGS.items():
        changed = OmegaConf.create(OmegaConf.to_container(cfg.benchmark))
        OmegaConf.update(changed, f"aime24.{key}", compose([f"++benchmark={{x: {value}}}"]).benchmark.x)
        after = component(changed, "aime24").described()
        assert after != before, key
    others = {
        "_target_",
        "file",
        "problem_field",
        "answer_field",
        "id_field",
        "hub",
        "verifier",
        "window",
        "limit",
        "seed",
    }
    assert set(cfg.benchmark.aime24) == {*others, *(key for key in SETTINGS if "." not in key)}


@pytest.mark.parametrize("setting", ["problem_field=question", "answer_field=result", "id_field=key", "file=b.jsonl"])
def test_names_of_fields_and_file_are_read(setting: str, folder: Path) -> None:
    rows = [{"question": "?", "result": "!", "key": "k", **row} for row in ROWS[:1]]
    for name in ("aime2024.jsonl", "b.jsonl"):
        (folder / name).write_text("".join(json.dumps({**row, "answer": name}) + "\n" for row in rows))
    before, after = (composed("aime24", *more).problems(folder) for more in ((), (f"benchmark.aime24.{setting}",)))
    assert before != after
