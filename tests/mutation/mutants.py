"""Which mutants are drawn: cosmic-ray's operators over the rooms that decide what is learned, sampled and seeded.

Left out by rule, because no behaviour depends on them: type annotations and aliases of types, what stands under
`TYPE_CHECKING` or `__main__`, texts of errors and log lines, messages of assertions, `strict=` of zip, decorators.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.work_item import MutationSpec, WorkItem

ROOMS = ("objective", "methods", "rollout", "training", "verifiers")
# Judged by `nox -s vllm` alone.
ELSEWHERE = tuple(path.name for path in (PACKAGE / "rollout" / "engines" / "vllm").glob("*.py"))
# The first two need arguments; without a decorator most programs do not run.
UNUSED = ("VariableReplacer", "VariableInserter", "RemoveDecorator")
Position = tuple[int, int]
Span = tuple[Position, Position]
LOGS = ("debug", "info", "warning", "error")


def families() -> dict[str, list[str]]:
    """Operators that act at the same places, such as all that replace a plus, by one of them."""
    found: dict[str, list[str]] = {}
    for name in sorted(operator_names()):
        if not name.endswith(UNUSED):
            kind, *pair = name.split("_")
            found.setdefault("_".join([kind, *pair[:1]]), []).append(name)
    return {names[0]: names for names in found.values()}


class _Positions(Visitor):  # type: ignore[misc]
    """Where operators could act, in the order they count their occurrences."""

    def __init__(self, names: Iterable[str]) -> None:
        self.operators = {name: get_operator(name)() for name in names}
        self.found: dict[str, list[Span]] = {name: [] for name in self.operators}

    def visit(self, node: object) -> object:
        for name, operator in self.operators.items():
            self.found[name] += list(operator.mutation_positions(node))
        return node


def _span(node: ast.AST) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def _annotations(node: ast.AST) -> Iterator[ast.AST | None]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.returns
    if isinstance(node, ast.arg | ast.AnnAssign):
        yield node.annotation


def _texts(node: ast.AST) -> Iterator[ast.AST | None]:
    if isinstance(node, ast.Raise):
        yield node.exc
    if isinstance(node, ast.Assert):
        yield node.msg
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in LOGS and isinstance(node.func.value, ast.Name):
            yield node
        if node.func.attr == "refuse":
            yield from node.args
    if isinstance(node, ast.keyword) and node.arg == "strict":
        yield node.value


def _types(node: ast.AST) -> Iterator[ast.AST | None]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        yield node
    if isinstance(node, ast.Module):  # aliases such as PerPart = float | Mapping[str, float]
        for statement in node.body:
            value = statement.value if isinstance(statement, ast.Assign) else None
            if isinstance(value, ast.BinOp | ast.Subscript):
                yield value


def excluded(source: str) -> list[Span]:
    """Parts of a file in which a mutant would say nothing."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for part in (*_annotations(node), *_texts(node), *_types(node)):
            if part is not None:
                spans.append(_span(part))
    return spans


@cache
def candidates(path: Path) -> dict[Span, list[tuple[str, int]]]:
    """Where a file could be changed, and by which operator (and which of its occurrences)."""
    source = path.read_text()
    outside, alike = excluded(source), families()
    visitor = _Positions(alike)
    visitor.walk(get_ast(source))
    found: dict[Span, list[tuple[str, int]]] = {}
    for first, spans in visitor.found.items():
        for occurrence, (start, end) in enumerate(spans):
            if not any(begin <= tuple(start) and tuple(end) <= last for begin, last in outside):
                found.setdefault((tuple(start), tuple(end)), []).extend((name, occurrence) for name in alike[first])
    return found


def _drawn(path: Path, root: Path, seed: int) -> Iterator[WorkItem]:
    """A file's mutants in a seeded order: a place, then one of the changes possible there."""
    source = path.read_text()
    digest, name = hashlib.sha256(source.encode()).hexdigest()[:12], str(path.relative_to(root))
    places, chance = candidates(path), random.Random(f"{seed}/{name}")
    order = sorted(places)
    chance.shuffle(order)
    for start, end in order:
        operator, occurrence = chance.choice(places[start, end])
        job = f"{name}:{start[0]}:{start[1]}:{operator.rpartition('/')[2]}:{occurrence}:{digest}"
        yield WorkItem.single(job, MutationSpec(name, operator, occurrence, start, end))


def sample(root: Path, count: int, seed: int) -> list[WorkItem]:
    """`count` mutants, files in proportion to their length; a smaller sample is the beginning of a larger one.

    Args:
        root: of the checkout.
        count: how many.
        seed: of the order within each file.
    """
    files: Sequence[Path] = [
        path
        for room in ROOMS
        for path in sorted((root / "rlvr_lightning" / room).rglob("*.py"))
        if path.name not in ELSEWHERE and candidates(path)
    ]
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    total = sum(lengths.values())
    streams, taken = {path: _drawn(path, root, seed) for path in files}, dict.fromkeys(files, 0)
    items: list[WorkItem] = []
    while len(items) < count and streams:
        # The file furthest behind its share.
        behind = max(streams, key=lambda path: (lengths[path] * (len(items) + 1) / total - taken[path], str(path)))
        item = next(streams[behind], None)
        if item is None:
            del streams[behind]
            continue
        taken[behind] += 1
        items.append(item)
    return items
