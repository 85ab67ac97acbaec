"""What each method costs over GRPO."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.page import Table
from benchmarks.turns import Worker, take_turns
from rlvr_lightning.config.compose import config_dir

NOTE = """4 prompts, 8 responses each, 64 tokens a response, on-policy, one micro-batch; the same random responses for all, so
that the step is what follows the sampling. A method with a reference policy (a KL term) pays a forward pass of it. Where a
weight of every token depends on the whole step (OPEFO, STEER) the gradient cannot be foreseen, and the logits are made again."""
# Processes at a time, beside two of GRPO.
TOGETHER = 4
AGAIN = "grpo again"


def names() -> list[str]:
    """All experiments but those of a paper's own size, or of a task's."""
    found = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
    return [name for name in found if not re.search(r"\db$", name) and not name.startswith(("sparks", "countdown"))]


def measure(folder: Path, rounds: int) -> Table:
    """Some at a time, each time beside GRPO, and a second GRPO that shows what a difference is worth."""
    case = Case(folder, prompts=4)
    found, others, again = [], [name for name in names() if name != "grpo"], []
    for start in range(0, len(others), TOGETHER):
        ways = {
            name: Worker("benchmarks.training", ["random", *case.overrides("transformers", name.split()[0])])
            for name in ("grpo", AGAIN, *others[start : start + TOGETHER])
        }
        measured = take_turns(ways, rounds, warm_up=2)
        base = measured.pop("grpo")
        again.append(measured.pop(AGAIN).against(base))
        found += [(one.against(base), name, one) for name, one in measured.items()]
    rows = [[f"`grpo` again, lowest to highest of {len(again)}", f"{min(again):.2f} to {max(again):.2f}", "", "", ""]]
    rows += [
        [
            f"`{name}`",
            f"{ratio:.2f}",
            f"{one.parts['scoring']:.2f}",
            f"{one.parts['updating']:.2f}",
            f"{one.memory / 1e9:.1f}",
        ]
        for ratio, name, one in sorted(found)
    ]
    columns = ("conf=", "step against GRPO's", "scoring [s]", "update [s]", "memory [GB]")
    return Table("methods", "Methods against GRPO", NOTE, columns, rows)
