"""Rows of the shared code files as problems, their reference solutions as responses, and mutants of them."""

from __future__ import annotations

import ast
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlvr_lightning.types import Problem

FILES = (
    "humaneval.jsonl",
    "mbpp.jsonl",
    "leetcode_test.jsonl",
    "leetcode_train.jsonl.gz",
    "code_stdin.jsonl.gz",
    "livecodebench_format_sample.jsonl",
)


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def problem_of(row: dict[str, Any]) -> Problem:
    text = row.get("problem") or row.get("question_content") or ""
    return Problem(str(row.get("id") or row.get("question_id")), ({"role": "user", "content": text},), "", row)


def solved(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows with a reference solution that was verified upstream and that texts can judge."""
    return [
        row
        for row in read(folder / name)
        if row.get("canonical_solution") and row.get("solution_verified", True) and row.get("checker") != "special"
    ]


def fenced(code: str) -> str:
    return f"Here it is.\n\n```python\n{code}\n```\n"


SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def mutants(source: str) -> Iterator[str]:
    """One change each: an operator, a comparison, a constant (off by one), what is returned."""
    count = len(list(ast.walk(ast.parse(source))))
    for index in range(count):
        tree = ast.parse(source)
        node = list(ast.walk(tree))[index]
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            node.value = not node.value
        elif isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Constant(None)
        else:
            continue
        yield ast.unparse(ast.fix_missing_locations(tree))


def drawn(seed: int, items: list[Any], count: int) -> list[Any]:
    return random.Random(seed).sample(items, min(count, len(items)))
