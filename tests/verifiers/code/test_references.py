"""Real programs on real tests: reference solutions pass, mutants that fail by brute force fail, labelled ones agree."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rows import FILES, drawn, fenced, mutants, problem_of, read, solved

from rlvr_lightning.types import Verdict
from rlvr_lightning.verifiers.code.tests import Cases, Script, read_tests
from rlvr_lightning.verifiers.code.verifier import CodeVerifier

BRUTE = Path(__file__).with_name("brute.py")
# A sample for every day: so many of each file.
SAMPLE = 3


@pytest.fixture(scope="module")
def verifier() -> CodeVerifier:
    """Patient: what is tested here is right and wrong, not speed."""
    slow = dict.fromkeys(("check", "asserts", "functional", "stdin", "call", "livecodebench"), 30.0)
    return CodeVerifier(timeout_s=slow)


def failed(verifier: CodeVerifier, rows: list[dict[str, Any]]) -> list[tuple[str, Verdict]]:
    with ThreadPoolExecutor(verifier.concurrency) as pool:
        verdicts = pool.map(lambda row: verifier(fenced(row["canonical_solution"]), problem_of(row)), rows)
        judged = [(problem_of(row).id, verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    return [(name, verdict) for name, verdict in judged if not verdict.correct or verdict.reward != 1.0]


@pytest.mark.parametrize("name", FILES)
def test_a_sample_of_reference_solutions_passes(shared_data: Path, verifier: CodeVerifier, name: str) -> None:
    rows = drawn(0, solved(shared_data, name), SAMPLE)
    assert rows
    assert failed(verifier, rows) == []


@pytest.mark.conformance
@pytest.mark.parametrize("name", FILES)
def test_every_reference_solution_passes(shared_data: Path, verifier: CodeVerifier, name: str) -> None:
    assert failed(verifier, solved(shared_data, name)) == []


def test_a_completion_and_the_whole_program_are_both_right(shared_data: Path, verifier: CodeVerifier) -> None:
    for row in drawn(1, solved(shared_data, "humaneval.jsonl"), 3):
        whole = row["problem"] + row["canonical_solution"]
        for response in (row["canonical_solution"], fenced(row["canonical_solution"]), whole, fenced(whole)):
            assert verifier(response, problem_of(row)).kind == "correct", row["id"]


def labelled(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    rows = {row["id"]: row for row in read(folder / "code_stdin.jsonl.gz")}
    for solution in read(folder / "code_labelled_solutions.jsonl"):
        yield solution, rows[solution["problem_id"]]


def disagreeing(verifier: CodeVerifier, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[str, str]]:
    return [
        (row["id"], solution["code"])
        for solution, row in pairs
        if verifier(fenced(solution["code"]), problem_of(row)).correct is not solution["correct"]
    ]


def test_a_sample_of_labelled_solutions_agrees(shared_data: Path, verifier: CodeVerifier) -> None:
    pairs = drawn(0, list(labelled(shared_data)), 8)
    assert {solution["correct"] for solution, _ in pairs} == {True, False}
    assert disagreeing(verifier, pairs) == []


@pytest.mark.slow
def test_every_labelled_solution_agrees(shared_data: Path, verifier: CodeVerifier) -> None:
    pairs = list(labelled(shared_data))
    assert len(pairs) >= 50
    assert disagreeing(verifier, pairs) == []


def by_brute_force(folder: Path, row: dict[str, Any], code: str) -> bool:
    """Whether a program passes a row's tests in one process."""
    tests = read_tests(row, "row")
    file = Path(tempfile.mkstemp(".json", dir=folder)[1])
    if isinstance(tests, Script):
        file.write_text(json.dumps([tests.setup, code, tests.code]))
        return ran([str(file), "tests"], "") is not None
    assert isinstance(tests, Cases)
    assert tests.function is None
    file.write_text(json.dumps([code]))
    outputs = [(ran([str(file), "__main__"], case.input), case.output) for case in tests.cases]
    return all(
        output is not None and output.lower().split() == expected.lower().split() for output, expected in outputs
    )


def ran(arguments: list[str], text: str) -> str | None:
    done = subprocess.run(
        [sys.executable, "-I", str(BRUTE), *arguments], input=text, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def all_mutants(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for name in ("humaneval.jsonl", "mbpp.jsonl", "leetcode_test.jsonl", "code_stdin.jsonl.gz"):
        for row in solved(folder, name):
            if row["tests"]["type"] == "call":
                continue
            whole = (
                row["canonical_solution"]
                if row["tests"]["type"] != "check"
                else row["problem"] + row["canonical_solution"]
            )
            for mutant in mutants(whole):
                yield row, mutant


def wrongly_judged(
    verifier: CodeVerifier, folder: Path, pairs: list[tuple[dict[str, Any], str]]
) -> tuple[int, list[str]]:
    """How many mutants fail by brute force, and which are judged otherwise."""

    def judged(pair: tuple[dict[str, Any], str]) -> tuple[bool, str | None]:
        row, mutant = pair
        passes = by_brute_force(folder, row, mutant)
        agrees = verifier(fenced(mutant), problem_of(row)).correct is passes
        return passes, None if agrees else f"{row['id']} {passes}\n{mutant}"

    with ThreadPoolExecutor(verifier.concurrency) as pool:
        found = list(pool.map(judged, pairs))
    return sum(not passes for passes, _ in found), [told for _, told in found if told is not None]


def test_a_sample_of_mutants_is_judged_as_by_brute_force(
    shared_data: Path, verifier: CodeVerifier, tmp_path: Path
) -> None:
    quick = CodeVerifier(timeout_s={"check": 4.0, "asserts": 4.0, "functional": 4.0, "stdin": 4.0})
    fail, wrong = wrongly_judged(quick, tmp_path, drawn(0, list(all_mutants(shared_data)), 4))
    assert wrong == []
    assert fail > 0


@pytest.mark.slow
def test_forty_mutants_are_judged_as_by_brute_force(shared_data: Path, tmp_path: Path) -> None:
    quick = CodeVerifier(timeout_s={"check": 4.0, "asserts": 4.0, "functional": 4.0, "stdin": 4.0})
    fail, wrong = wrongly_judged(quick, tmp_path, drawn(2, list(all_mutants(shared_data)), 40))
    assert wrong == []
    assert fail >= 20


@pytest.mark.conformance
def test_mutants_are_judged_as_by_brute_force(shared_data: Path, tmp_path: Path) -> None:
    quick = CodeVerifier(timeout_s={"check": 4.0, "asserts": 4.0, "functional": 4.0, "stdin": 4.0})
    fail, wrong = wrongly_judged(quick, tmp_path, drawn(1, list(all_mutants(shared_data)), 1500))
    assert wrong == []
    assert fail >= 1000
