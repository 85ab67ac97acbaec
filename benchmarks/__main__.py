"""Measure and write docs/benchmarks.md: `python -m benchmarks [NAME...] [--rounds 5]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import growth, head, methods, start, step
from benchmarks.cases import make
from benchmarks.page import Found, Table, write
from benchmarks.turns import ROUNDS

BENCHMARKS: dict[str, Callable[[Path, int], Table]] = {
    "step": step.measure,
    "head": head.measure,
    "methods": methods.measure,
    "growth": growth.measure,
    "start": start.measure,
}


def main(arguments: Sequence[str]) -> None:
    """One after another; each is saved as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns that are measured (default: %(default)s)")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark is called {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory() as folder:
        case = make(Path(folder) / "model")
        for name in given.names or BENCHMARKS:
            sys.stderr.write(f"{name}\n")
            Found(BENCHMARKS[name](case, given.rounds)).save()
            write(list(BENCHMARKS))


if __name__ == "__main__":
    main(sys.argv[1:])
