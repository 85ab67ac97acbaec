"""How time and memory grow with tokens a step, with the length of responses, with groups, and with ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.page import Plot, Table
from benchmarks.turns import Measured, Worker, take_turns

NOTE = """GRPO on random responses, 4,096 response tokens in a micro-batch; time is that of the whole step but its sampling. Ranks
share the machine's cores, a process each. The C library's heap keeps blocks below 32 MiB for later use, which are not always found:
with `MALLOC_MMAP_THRESHOLD_=4194304` a step of 8k tokens takes 1.53 GB instead of 1.88, and 1.19 of its time."""
MICRO_TOKENS = 4096
CASES = {
    "1k tokens a step": Case(Path(), prompts=2),
    "4k": Case(Path(), prompts=8),
    "16k": Case(Path(), prompts=32),
    "64k": Case(Path(), prompts=128),
    "16k, responses of 256": Case(Path(), prompts=8, length=256),
    "16k, responses of 1k": Case(Path(), prompts=2, length=1024),
    "16k, responses of 4k": Case(Path(), prompts=2, group_size=2, length=4096),
    "16k, groups of 2": Case(Path(), prompts=128, group_size=2),
    "16k, groups of 32": Case(Path(), prompts=8, group_size=32),
}
RANKS = "16k, two ranks"
FAST = ("1k tokens a step", "4k", "16k", "64k")


def measure(folder: Path, rounds: int) -> Table:
    """One case after another, each beside the 4k of the same minute."""
    rows, points = [], []
    for name, case in [*CASES.items(), (RANKS, CASES["16k"])]:
        case = replace(case, folder=folder, micro_batches=max(1, case.tokens // MICRO_TOKENS))
        more = ("strategy=ddp", "trainer.devices=2") if name == RANKS else ()
        ways = {"base": worker(replace(CASES["4k"], folder=folder)), name: worker(case, *more)}
        measured = take_turns(ways, min(rounds, 3), warm_up=2)
        base, one = measured["base"], measured[name]
        each, its = _a_token(one, case), base.median / CASES["4k"].tokens
        rows.append([name, f"{one.median:.1f}", f"{each * 1e3:.2f}", f"{each / its:.2f}", f"{one.memory / 1e9:.2f}"])
        if name in FAST:
            points.append((case.tokens, each * 1e3))
    columns = ("", "step [s]", "a token [ms]", "against 4k", "memory [GB]")
    return Table("growth", "Growth", NOTE, columns, rows, Plot("tokens a step", "time a token [ms]", {"GRPO": points}))


def worker(case: Case, *more: str) -> Worker:
    """A run of ours."""
    return Worker("benchmarks.training", ["random", *case.overrides("transformers"), *more])


def _a_token(one: Measured, case: Case) -> float:
    return one.median / case.tokens
