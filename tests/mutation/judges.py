"""Who judges a mutant: the fast tests that execute its lines, fastest first. Recorded once, file by file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import coverage
from cosmic_ray.work_item import MutationSpec


def test_files(root: Path) -> list[Path]:
    """Every file of tests."""
    return sorted((root / "tests").rglob("test_*.py"))


def record(root: Path, folder: Path, workers: int) -> None:
    """Run each test file that has not been recorded yet under coverage, `workers` at a time."""
    folder.mkdir(parents=True, exist_ok=True)

    def run(path: Path) -> None:
        held = folder / "_".join(path.relative_to(root).parts)
        if held.with_suffix(".py.json").exists():
            return
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "MUTATION_SECONDS": str(held.with_suffix(".py.json")),
            "COVERAGE_FILE": str(held.with_suffix(".py.cov")),
        }
        measure = [sys.executable, "-m", "coverage", "run", "--source=rlvr_lightning", "-m", "pytest", "-q"]
        arguments = ["-m", "not slow", "-p", "mutation.recorder", str(path)]
        subprocess.run([*measure, *arguments], cwd=root, env=environment, check=False)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, test_files(root)))


@dataclass(frozen=True)
class Judges:
    """What was recorded.

    Args:
        seconds: of each test that passed.
        lines: by file and line, the tests that executed it.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """Everything recorded so far."""
        seconds: dict[str, float] = {}
        lines: dict[str, dict[int, set[str]]] = {}
        for path in sorted(folder.glob("*.py.json")):
            seconds |= json.loads(path.read_text())
            data = coverage.CoverageData(str(path.with_suffix(".cov")))
            data.read()
            for file in data.measured_files():
                where = lines.setdefault(f"rlvr_lightning/{file.rpartition('/rlvr_lightning/')[2]}", {})
                for line, tests in data.contexts_by_lineno(file).items():
                    where.setdefault(line, set()).update(tests)
        return cls(seconds, lines)

    def of(self, mutation: MutationSpec, source: str, budget: float) -> list[str]:
        """Tests of a mutant, fastest first, as many as take `budget` seconds; then others of the same files.

        What a fixture of a whole file runs is recorded for the first test that asked for it, and concerns the others. A
        line that runs at import alone (a constant, a default) belongs to whoever uses the file; one that runs in
        another process alone to the tests of its room.
        """
        held = self.lines.get(str(mutation.module_path), {})
        wanted = statement_lines(source, mutation.start_pos[0], mutation.end_pos[0])
        tests = {name for line in wanted for name in held.get(line, ())} & self.seconds.keys()
        tests = tests or {name for names in held.values() for name in names} & self.seconds.keys()
        if not tests:  # another process runs the file
            room = f"tests/{mutation.module_path.parts[1]}/"
            tests = {name for name in self.seconds if name.startswith(room)}
        files = {name.partition("::")[0] for name in tests}
        others = {name for name in self.seconds if name.partition("::")[0] in files} - tests
        chosen, spent = [], 0.0
        for name in [*self._fastest_first(tests), *self._fastest_first(others)]:
            spent += self.seconds[name]
            if chosen and spent > budget:
                break
            chosen.append(name)
        return chosen

    def _fastest_first(self, tests: set[str]) -> list[str]:
        return sorted(tests, key=lambda name: (self.seconds[name], name))


def statement_lines(source: str, start: int, end: int) -> range:
    """Lines of the innermost statement around some lines; of a compound one its head alone."""
    best = range(start, end + 1)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt) or node.end_lineno is None:
            continue
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else node.end_lineno
        if node.lineno <= start and end <= last:
            best = range(node.lineno, last + 1)
    if isinstance(best, range) and _is_head_of_function(source, best.start):
        return range(0)
    return best


def _is_head_of_function(source: str, line: int) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return any(isinstance(node, kinds) and node.lineno == line for node in ast.walk(ast.parse(source)))
