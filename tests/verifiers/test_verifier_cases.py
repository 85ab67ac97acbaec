"""The conformance cases of the shared data folder, tier by tier."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.errors import VerifierError, VerifierTimeoutError
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.math import MathVerifier

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "verifier_cases.jsonl"
GATES = {"core": 0.99, "symbolic": 0.95, "extraction": 0.95}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    if not CASES.is_file():
        pytest.skip(f"the conformance cases are not here: {CASES}")
    with CASES.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(timeout_s=5.0)
    yield verifier
    verifier.close()


def accepts(verifier: MathVerifier, case: Mapping[str, Any]) -> bool:
    """Whether the verifier accepts the case's prediction."""
    verifier.extract = case.get("extract") or ("auto" if case["kind"] == "response" else "free")
    return verifier(case["prediction"], Problem("case", (), case["gold"])).correct


@pytest.mark.parametrize("tier", GATES)
def test_agreement(cases: list[dict[str, Any]], verifier: MathVerifier, tier: str) -> None:
    chosen = [case for case in cases if case["tier"] == tier]
    wrong = []
    for case in chosen:
        try:
            outcome: bool | str = accepts(verifier, case)
        except VerifierTimeoutError:
            outcome = False  # no verdict in time accepts nothing
        except VerifierError as error:
            outcome = f"{type(error).__name__}: {error}"
        if outcome is not case["correct"]:
            wrong.append((case["gold"], case["prediction"][-200:], outcome))
    agreement = 1 - len(wrong) / len(chosen)
    print(f"{tier}: {len(chosen) - len(wrong)}/{len(chosen)}")  # noqa: T201 - the figure this test is about
    assert agreement >= GATES[tier], wrong


def test_hostile_input_ends_in_time(cases: list[dict[str, Any]], verifier: MathVerifier) -> None:
    chosen = [case for case in cases if case["tier"] == "robustness"]
    assert chosen
    for case in chosen:
        start = time.monotonic()
        with contextlib.suppress(VerifierTimeoutError):
            assert accepts(verifier, case) is case["correct"], case
        assert time.monotonic() - start < 10, case
