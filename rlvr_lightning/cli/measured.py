"""What `validate` and `test` show and leave of the held-out problems: accuracies with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rlvr_lightning.errors import DataError
from rlvr_lightning.evaluation.statistics import Estimate, accuracies, as_json, as_markdown, as_table
from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.tasks.outcomes import outcome_lines
from rlvr_lightning.types import Outcomes

if TYPE_CHECKING:
    from rlvr_lightning.config.build import Run


@dataclass(frozen=True)
class Measured:
    """The held-out problems of all ranks, and what they come to.

    Args:
        problems: in the task's order.
        results: avg@k and pass@k.
        about: what was measured, for the JSON file.
        folder: the output folder.
        speaks: whether this rank shows and writes.
    """

    problems: Sequence[Outcomes]
    results: Sequence[Estimate]
    about: dict[str, Any]
    folder: Path
    speaks: bool

    @classmethod
    def of(cls, run: Run) -> Measured:
        """Gather a run that has just been measured. Every rank must call it.

        Raises:
            DataError: the task has no held-out problems.
        """
        module, data, cfg = run.module, run.data, run.cfg
        problems = [outcomes for _, outcomes in sorted(from_all_ranks(list(module.outcomes.items())))]
        if not problems:
            raise DataError(f"{cfg.name} has no held-out problems to measure on: see task.held_out, task.num_held_out")
        about = {
            "name": cfg.name,
            "model": cfg.model.path,
            "policy_version": module.policy_version,
            "seed": cfg.seed,
            "samples": module.eval_samples,
            "temperature": data.temperature,
            "max_new_tokens": data.sampling.max_new_tokens,
            "without_verdict": module.num_unjudged,
        }
        results = accuracies(problems, module.eval_samples)
        return cls(problems, results, about, run.data.output_dir or run.output_dir, run.trainer.is_global_zero)


def show(measured: Measured) -> None:
    """The table on the screen."""
    if not measured.speaks:
        return
    Console().print(as_table("held-out accuracy", measured.results))
    if measured.about["without_verdict"]:
        Console().print(f"{measured.about['without_verdict']} responses without a verdict count as not right")


def write(measured: Measured) -> None:
    """`test/step_N.json`, `.md` and `.jsonl` (a line a problem, for comparisons); N: optimizer steps of the policy."""
    if not measured.speaks:
        return
    path = measured.folder / "test" / f"step_{measured.about['policy_version']:08}"
    write_whole(path.with_suffix(".json"), as_json(measured.results, measured.about).encode())
    write_whole(path.with_suffix(".md"), as_markdown(measured.results).encode())
    write_whole(path.with_suffix(".jsonl"), outcome_lines(measured.problems))
    Console().print(f"measured: {path}.json, .md, .jsonl", soft_wrap=True)
