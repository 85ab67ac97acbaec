"""The documents say what is there: files, their lengths, experiments, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlvr_lightning.config.compose import config_dir

ROOT = Path(__file__).parents[1]
METHODS = (ROOT / "docs" / "methods.md").read_text()
PACKAGES = ("advantages", "partitioners", "constraints", "regularizers", "weightings")
PACKAGES += ("corrections", "controllers", "shaping")


def length(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_lengths_in_the_table_of_methods() -> None:
    stated = re.findall(r"\]\((\.\./rlvr_lightning/[\w/]+\.py)\) \((\d+)\)", METHODS)
    assert len(stated) > 20
    wrong = {path: (int(lines), length(ROOT / "docs" / path)) for path, lines in stated}
    assert {path: pair for path, pair in wrong.items() if pair[0] != pair[1]} == {}


def test_component_files_are_short() -> None:
    files = [file for package in PACKAGES for file in (ROOT / "rlvr_lightning" / "methods" / package).glob("*.py")]
    lengths = [length(file) for file in files if file.name != "__init__.py"]
    assert len(lengths) > 35
    assert max(lengths) <= 120
    assert sum(lines < 60 for lines in lengths) > len(lengths) / 2


def test_every_experiment_and_member_is_documented() -> None:
    groups = ("experiment", "advantage", "partitioner", "constraint", "regularizer", "weighting", "correction")
    for group in (*groups, "aggregator", "controller"):
        for file in (config_dir() / group).glob("*.yaml"):
            known = METHODS + (ROOT / "docs" / "controllers.md").read_text()
            assert f"`{file.stem}`" in known or f"conf={file.stem}`" in known, (group, file.stem)


@pytest.mark.parametrize(
    "file", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda file: file.name
)
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), target
