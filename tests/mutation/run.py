"""`nox -s mutation -- --count 300 --seed 0`: draw mutants, judge them, print the score and who survived.

The session is cosmic-ray's own file; an interrupted run goes on where it stopped, and after a change of a file only that
file's mutants are judged anew.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from rich.console import Console

from mutation.judges import Judges, record
from mutation.mutants import sample

ROOT = Path(__file__).parents[2]
KEPT_OUT = (".git", "__pycache__", ".mutation", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache", "outputs")
START_SECONDS = 60.0  # collecting and the like
# What tests import from elsewhere is imported once: each mutant's tests run in a fork of that process.
FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ("pytest", "hypothesis", "torch", "lightning.pytorch", "peft", "hydra", "torchmetrics", "matplotlib.pyplot")
PRELOADED += ("transformers.models.llama.modeling_llama", "transformers.generation.utils", "torch.utils.tensorboard")
SHOW = Console(highlight=False, soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s mutation --", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2, help="files recorded and mutants judged at a time")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of recorded tests for each mutant at most")
    parser.add_argument("--folder", type=Path, default=ROOT / ".mutation", help="records and the session")
    parser.add_argument("--again", action="store_true", help="judge the survivors anew, by tests written since")
    parser.add_argument("--recorded", action="store_true", help="record no further tests")
    parser.add_argument(
        "--among", default="", help="judge mutants of files with one of these words in their path alone"
    )
    parser.add_argument(
        "--by", default="", help="judge the survivors by all tests of these files too, slow ones included"
    )
    return parser.parse_args()


def mutated(tree: Path, item: WorkItem) -> str | None:
    """The file's code with the mutation, or None where there is none."""
    (mutation,) = item.mutations
    code = (tree / mutation.module_path).read_text()
    result: str | None = mutate_code(code, get_operator(mutation.operator_name)(), mutation.occurrence)
    return result


def _pytest(tree: Path, output: Path, arguments: Sequence[str]) -> None:
    """In a fork: the exit status is pytest's."""
    import pytest

    os.setsid()
    os.chdir(tree)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    folders = [str(tree), str(tree / "tests")]
    sys.dont_write_bytecode = True
    sys.path[:0] = folders
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(folders)}
    os._exit(int(pytest.main([*arguments])))


def run_tests(tree: Path, arguments: Sequence[str], seconds: float) -> tuple[TestOutcome, str]:
    """Whether a test fails, or hangs, and what pytest said."""
    output = tree.parent / "output.txt"
    process = FORKS.Process(target=_pytest, args=(tree, output, arguments))
    process.start()
    process.join(seconds)
    ended = process.exitcode is not None
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    said = output.read_text(errors="replace")[-4000:] if output.exists() else ""
    if not ended:
        return TestOutcome.KILLED, f"{said}\nlonger than {seconds:.0f} s"
    if "ERROR collecting" in said or "ImportError while loading conftest" in said:
        return TestOutcome.KILLED, said
    # 3 to 5: pytest's own failure, a test that is not there, no test at all.
    known = {
        0: TestOutcome.SURVIVED,
        3: TestOutcome.INCOMPETENT,
        4: TestOutcome.INCOMPETENT,
        5: TestOutcome.INCOMPETENT,
    }
    return known.get(process.exitcode or 0, TestOutcome.KILLED), said


def judge(tree: Path, item: WorkItem, tests: Sequence[str], seconds: float, marked: str = "not slow") -> WorkResult:
    """Run tests on a mutant in a copy of the checkout that is no one else's."""
    (mutation,) = item.mutations
    file = tree / mutation.module_path
    original, code = file.read_text(), mutated(tree, item)
    if code is None or code == original:
        return WorkResult(WorkerOutcome.NO_TEST)
    if not tests:
        return WorkResult(WorkerOutcome.NORMAL, "no test executes it", TestOutcome.SURVIVED)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", marked, *tests]
    try:
        file.write_text(code)
        outcome, output = run_tests(tree, arguments, START_SECONDS + 5 * seconds)
    finally:
        file.write_text(original)
    normal = outcome != TestOutcome.INCOMPETENT
    return WorkResult(WorkerOutcome.NORMAL if normal else WorkerOutcome.ABNORMAL, output, outcome)


def copies(count: int, folder: Path) -> Queue[Path]:
    """Trees of the workers."""
    free: Queue[Path] = Queue()
    for number in range(count):
        tree = folder / f"tree_{number}" / "checkout"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*KEPT_OUT))
        data = tree.parent / "shared"  # tests read data beside the checkout, where there is some
        if (ROOT.parent / "shared").is_dir() and not data.exists():
            data.symlink_to(ROOT.parent / "shared")
        free.put(tree)
    return free


def verdict(result: WorkResult) -> str:
    """In a word."""
    return str((result.test_outcome or result.worker_outcome).value)


def judge_all(database: WorkDB, items: Sequence[WorkItem], judges: Judges, options: argparse.Namespace) -> None:
    """Those without a result, in the order they were drawn."""
    free, known = copies(options.workers, options.folder), dict(database.results)

    def work(item: WorkItem) -> tuple[WorkItem, WorkResult]:
        tree = free.get()
        try:
            (mutation,) = item.mutations
            tests = judges.of(mutation, (tree / mutation.module_path).read_text(), options.budget)
            result = judge(tree, item, tests, sum(judges.seconds[name] for name in tests))
            if result.test_outcome == TestOutcome.SURVIVED and options.by:
                result = judge(tree, item, options.by.split(), 600.0, "not vllm")
            return item, result
        finally:
            free.put(tree)

    def pending(item: WorkItem) -> bool:
        held, (mutation,) = known.get(item.job_id), item.mutations
        if options.among and not any(word in str(mutation.module_path) for word in options.among.split()):
            return False
        return held is None or (options.again and held.test_outcome != TestOutcome.KILLED)

    with ThreadPoolExecutor(options.workers) as pool:
        for item, result in pool.map(work, filter(pending, items)):
            database.set_result(item.job_id, result)
            SHOW.print(f"{verdict(result):<12} {item.job_id.rpartition(':')[0]}")


def report(database: WorkDB, items: Sequence[WorkItem]) -> None:
    """The score, and each survivor with its line before and after."""
    results = dict(database.results)
    judged = [(item, results[item.job_id]) for item in items if item.job_id in results]
    # An operator may find nothing to change after all.
    judged = [pair for pair in judged if pair[1].worker_outcome != WorkerOutcome.NO_TEST]
    outcomes = [result.test_outcome for _, result in judged]
    killed = outcomes.count(TestOutcome.KILLED)
    for item, result in judged:
        if result.test_outcome == TestOutcome.KILLED:
            continue
        (mutation,) = item.mutations
        before = (ROOT / mutation.module_path).read_text().splitlines()
        after = (mutated(ROOT, item) or "").splitlines()
        changed = [number for number, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]][:1]
        SHOW.print(f"\n{verdict(result)}: {mutation.module_path}:{mutation.start_pos[0]}")
        for number in changed:
            SHOW.print(f"  - {before[number].strip()}\n  + {after[number].strip()}", markup=False)
    SHOW.print(f"\n{killed} of {len(judged)} mutants killed ({100 * killed / max(len(judged), 1):.1f} %)")


def main() -> None:
    """Draw, record, judge, report."""
    options = arguments()
    FORKS.set_forkserver_preload([*PRELOADED])
    items = sample(ROOT, options.count, options.seed)
    if not options.recorded:
        record(ROOT, options.folder, options.workers)
    judges = Judges.load(options.folder)
    with use_db(options.folder / f"session_{options.seed}.sqlite") as database:
        held = {item.job_id for item in database.work_items}
        database.add_work_items(item for item in items if item.job_id not in held)
        judge_all(database, items, judges, options)
        report(database, items)


if __name__ == "__main__":
    main()
