"""Verdicts a second, and whether memory stays flat: easy and symbolic mathematics, and programs in the sandbox.

    python benchmarks/verdicts.py math --count 100000       # easy answers
    python benchmarks/verdicts.py symbolic --count 2000     # answers for computer algebra
    python benchmarks/verdicts.py code --count 10000        # programs, in the strongest sandbox that works
    python benchmarks/verdicts.py code --count 3000 --phase 3000 --hang 100     # one in a hundred never ends

Memory is the resident one of this process, and of all its children together, every hundredth of the way; its growth is from a
tenth of the way to the largest after it.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future

import psutil
from answers import Sleepy, math_answers, programs, symbolic_answers

from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.code.verifier import CodeVerifier
from rlvr_lightning.verifiers.judging import Judgement
from rlvr_lightning.verifiers.pool import VerifierPool


def memory() -> tuple[int, int]:
    """Of this process, and of its children [bytes]."""
    own = psutil.Process()
    children = 0
    for child in own.children(recursive=True):
        try:
            children += child.memory_info().rss
        except psutil.NoSuchProcess:  # one that has just ended
            continue
    return own.memory_info().rss, children


def measured(pool: VerifierPool, answers: Iterable[tuple[str, Problem]], count: int, phase: int) -> None:
    """Judge them phase by phase and print what was seen."""
    kinds, seen = Counter[str](), list[tuple[int, int]]()
    waiting: list[Future[Judgement]] = []
    began, step = time.perf_counter(), max(phase, count // 100)
    for number, (response, problem) in enumerate(answers, 1):
        waiting.append(pool.submit(response, problem))
        if len(waiting) == phase or number == count:
            kinds.update(judgement.kind for judgement in pool.collect(waiting))
            waiting.clear()
            pool.forget()
            if number // step > len(seen):
                seen.append(memory())
    seconds = time.perf_counter() - began
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    lines = [f"{count:,} answers in {seconds:.1f} s: {count / seconds:,.0f} a second ({told})"]
    tenth = len(seen) // 10
    for name, place in (("this process", 0), ("its children", 1)):
        held = [entry[place] / 2**20 for entry in seen]
        if held and held[tenth]:
            growth = max(held[tenth:]) / held[tenth] - 1
            lines.append(
                f"memory of {name}: {held[tenth]:.0f} MiB at a tenth, at most {max(held[tenth:]):.0f} after it ({growth:+.1%})"
            )
    print("\n".join(lines), flush=True)


def main() -> None:
    """Print the figures of one kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("math", "symbolic", "code"))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--hang", type=int, help="one in so many never ends")
    parser.add_argument("--timeout", type=float, default=5.0, help="of an answer in a worker [seconds]")
    parser.add_argument("--phase", type=int, default=512, help="answers submitted before any is waited for")
    parser.add_argument("--sandbox", default="auto")
    settings = parser.parse_args()
    if settings.kind == "code":
        pool = VerifierPool(CodeVerifier(sandbox=settings.sandbox))
        answers = programs(settings.count, settings.hang)
        first = programs(4, None)
    else:
        pool = VerifierPool(Sleepy(), timeout_s=settings.timeout)
        answers = math_answers(settings.count, settings.hang)
        if settings.kind == "symbolic":
            answers = symbolic_answers(settings.count)
        first = symbolic_answers(4)
    # Starting is no part of it.
    pool.collect([pool.submit(*one) for one in first])
    measured(pool, answers, settings.count, settings.phase)
    pool.close()


if __name__ == "__main__":
    main()
