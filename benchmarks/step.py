"""A whole optimizer step against the floor, and against TRL."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.page import Table
from benchmarks.turns import Measured, Worker, take_turns

NOTE = """8 prompts, 8 responses each, 64 tokens a response, on-policy, vLLM in the trainer's process. The floor is what no step
can do without: vLLM's sampling, then one forward and backward pass of transformers' model with the output layer chunk by chunk
and again in the backward pass; no weights on their way, no optimizer, no log. TRL samples with transformers, since its vLLM does
not start on a CPU. Time is a step's in the median, memory the process's highest, libraries included."""


def measure(folder: Path, rounds: int) -> Table:
    """All ways, in two groups that fit a laptop's memory."""
    case = Case(folder)
    rows: list[list[str]] = []
    shape = [str(folder), *map(str, (case.prompts, case.group_size, case.length))]
    floor = ("benchmarks.floor", shape)
    first = {"floor": floor, "GRPO": ours(case, "grpo"), "GRPO, 4 micro-batches": ours(case, "grpo", 4)}
    if importlib.util.find_spec("trl") is not None:
        first["TRL's GRPOTrainer"] = ("benchmarks.peer", shape)
    second = {"floor": floor, "Archer": ours(case, "archer"), "Archer, 4 micro-batches": ours(case, "archer", 4)}
    third = {"floor": floor, "Lp-Reg": ours(case, "lp_reg"), "Lp-Reg, 4 micro-batches": ours(case, "lp_reg", 4)}
    for ways in (first, second, third):
        rows += _rows({way: Worker(*how) for way, how in ways.items()}, rounds, head=not rows)
    columns = ("", "step [s]", "against the floor", "sampling [s]", "update [s]", "memory [GB]")
    return Table("step", "A step against the floor", NOTE, columns, rows)


def ours(case: Case, method: str, micro_batches: int = 1) -> tuple[str, Sequence[str]]:
    """A run of ours."""
    return "benchmarks.training", ["vllm", *replace(case, micro_batches=micro_batches).overrides("vllm", method)]


def _rows(workers: Mapping[str, Worker], rounds: int, *, head: bool) -> list[list[str]]:
    found = take_turns(workers, rounds, warm_up=2)
    floor = found["floor"]
    return [row(way, one, floor) for way, one in found.items() if head or way != "floor"]


def row(way: str, one: Measured, floor: Measured) -> list[str]:
    """A line of the table."""
    parts = [f"{one.parts[name]:.1f}" if name in one.parts else "" for name in ("sampling", "updating")]
    return [way, f"{one.median:.1f}", f"{one.against(floor):.2f}", *parts, f"{one.memory / 1e9:.1f}"]
