"""The plan of the house: rooms import downwards, nothing goes in circles, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlvr_lightning"
# From what a user types down to the vocabulary: a room may import from those after it.
ROOMS = (
    "__main__",
    "cli",
    "study",
    "config",
    "callbacks",
    "module",
    "training",
    "datamodule",
    "rollout",
    "evaluation",
    "models",
    "methods",
    "objective",
    "verifiers",
    "protocols",
    "tasks",
    "types",
    "errors",
)


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text())
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of the package a tree imports, those for type checking alone included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlvr_lightning."):
            yield node.module


def room(module: str) -> str:
    return module.split(".")[1]


def edges() -> list[tuple[str, str]]:
    inside = {name: tree for name, tree in modules().items() if name != "rlvr_lightning"}
    return [(name, target) for name, tree in inside.items() for target in imports(tree)]


def test_no_arrow_runs_back_up() -> None:
    found = edges()
    assert len(found) > 200
    upwards = [pair for pair in found if ROOMS.index(room(pair[0])) > ROOMS.index(room(pair[1]))]
    assert upwards == []


def test_no_two_modules_import_each_other_by_any_way() -> None:
    graph: dict[str, set[str]] = {}
    for name, target in edges():
        graph.setdefault(name, set()).add(target)

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        open_ends = list(graph.get(start, ()))
        while open_ends:
            module = open_ends.pop()
            if module not in seen:
                seen.add(module)
                open_ends += graph.get(module, ())
        return seen

    assert [name for name in graph if name in reaches(name)] == []


def test_the_top_of_the_package_is_seen_at_a_glance() -> None:
    entries = [item.name for item in PACKAGE.iterdir() if item.name != "__pycache__"]
    assert len(entries) <= 20, sorted(entries)


def test_files_and_functions_are_short() -> None:
    long = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                long += [f"{name}.{node.name}: {length}"] if length > 50 else []
    for file in PACKAGE.rglob("*.py"):
        length = len(file.read_text().splitlines())
        long += [f"{file.relative_to(ROOT)}: {length}"] if length > 300 else []
    assert long == []
    assert len((PACKAGE / "module.py").read_text().splitlines()) < 250
