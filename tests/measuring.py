"""A benchmark of one's own for the tests: files as a user has them, measured from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from rlvr_lightning.cli.main import main
from rlvr_lightning.tasks.arithmetic import Arithmetic

# A benchmark of one's own, as docs/evaluation.md has it.
SUMS = r"""# @package benchmark.sums
defaults:
  - /verifier@verifier: exact
  - _self_

_target_: rlvr_lightning.Benchmark
file: sums.jsonl
samples: 2
temperature: 1.0
max_new_tokens: 48
template: "{problem}"
"""


def laid_out(place: Path) -> Path:
    """`data/sums.jsonl`, and `conf/` with two benchmarks of it."""
    (place / "data").mkdir()
    rows = [
        {"id": problem.id, "problem": problem.messages[0]["content"], "answer": problem.answer, "cluster": i // 2}
        for i, problem in enumerate(Arithmetic(num_held_out=12).held_out())
    ]
    (place / "data" / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "conf" / "benchmark").mkdir(parents=True)
    (place / "conf" / "benchmark" / "sums.yaml").write_text(SUMS)
    again = SUMS.replace("benchmark.sums", "benchmark.again").replace("samples: 2", "samples: 3\npass_k: 2")
    (place / "conf" / "benchmark" / "again.yaml").write_text(again)
    return place


def arguments(place: Path, *more: str) -> tuple[str, ...]:
    return ("--config-dir", str(place / "conf"), f"evaluation.folder={place / 'data'}", *more)


def measure(place: Path, output: Path, *more: str) -> None:
    assert main(("test", *arguments(place, "benchmark=[sums]", f"output_dir={output}", *more))) == 0


def responses(folder: Path, name: str = "sums") -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "responses" / f"{name}.jsonl").read_text().splitlines()]
