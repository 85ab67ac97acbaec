"""The published reference code's numbers, reproduced through the public components (`tests/conformance.py`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conformance import checks, main
from golden_cases import compute, read

OWN = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"


def cases() -> list[Path]:
    """Cases of the repository, and those beside it that are not among them."""
    found = {path.name: path for folder in (SHARED, OWN) for path in folder.glob("*.safetensors")}
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    found = list(checks(*read(path)))
    assert len(found) >= 3
    assert [check for check in found if not check.passed] == []


@pytest.mark.parametrize("path", [path for path in cases() if path.stem.startswith("archer")], ids=lambda p: p.stem)
def test_archers_summands(path: Path) -> None:
    meta, tensors = read(path)
    terms = compute(meta, tensors).output.terms
    for part in ("knowledge", "reasoning"):
        weighted = meta[f"{part}_kl_coef"] * meta["expected"][f"{part}_kl"]
        assert float(terms[f"kl/{part}"]) == pytest.approx(weighted, rel=1e-7, abs=1e-15)
    assert float(terms["surrogate"]) == pytest.approx(meta["expected"]["pg_loss"], rel=1e-7)


@pytest.mark.parametrize("path", [path for path in cases() if path.stem.startswith("ppo")], ids=lambda p: p.stem)
def test_clip_fraction(path: Path) -> None:
    meta, tensors = read(path)
    clipped = compute(meta, tensors).output.clipped
    assert clipped is not None
    share = clipped[tensors["response_mask"].bool()].double().mean()
    whole = meta["expected"]["pg_clipfrac"] + meta["expected"]["pg_clipfrac_lower"]
    assert float(share) == pytest.approx(whole, abs=1e-7)


def test_the_command_tells_cases_that_fail(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = OWN / "sapo_113.safetensors"
    meta, tensors = read(source)
    shutil.copy(source, tmp_path / "right.safetensors")
    header = {"meta": str(meta).replace("'", '"')}
    save_file(
        {**tensors, "expected_loss": tensors["expected_loss"] * (1 + 1e-6)}, tmp_path / "wrong.safetensors", header
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    command = [sys.executable, "tests/conformance.py", str(tmp_path)]
    done = subprocess.run(command, cwd=OWN.parents[2], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "1 of 3 cases pass" in done.stdout
    assert "foreign.safetensors is not a golden case" in " ".join(done.stdout.split())
    assert main([str(tmp_path / "nowhere")]) == 2
