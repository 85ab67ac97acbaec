from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvr_lightning.errors import VerifierError
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.math import MathVerifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(timeout_s=10.0)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    "form", [r"\boxed{%s}", r"\boxed{\text{%s}}", r"\boxed{\operatorname{%s}}", "$%s$", "Answer: %s", "%s"]
)
def test_text_is_never_evaluated(verifier: MathVerifier, form: str, tmp_path: Path) -> None:
    canary = tmp_path / "evaluated"
    code = f"__import__('pathlib').Path('{canary}').touch()"
    assert verifier(form % code, Problem("p", (), "3")).reward == 0.0
    assert not canary.exists()


@pytest.mark.parametrize("answer", ["(" * 3000 + ")" * 3000, "{" * 500, "1+" * 500 + "1", "$" * 3000, "x_" * 900])
@pytest.mark.parametrize("form", ["%s", r"\boxed{%s}"])
def test_degenerate_text_takes_bounded_time_and_earns_nothing(form: str, answer: str) -> None:
    verifier, start = MathVerifier(timeout_s=2.0), time.monotonic()
    with contextlib.suppress(VerifierError):
        assert verifier(form % answer, Problem("p", (), "3")).reward == 0.0
    verifier.close()
    assert time.monotonic() - start < 30.0
