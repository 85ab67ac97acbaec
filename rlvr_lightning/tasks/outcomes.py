"""Verdicts of problems on disk: one line a problem (`test`), a group (`solve_rates.jsonl`), or a response (`predict`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import DataError
from rlvr_lightning.tasks.files import read_rows
from rlvr_lightning.types import Outcomes, Rollout


def read_outcomes(path: Path, setting: str | None = None) -> list[Outcomes]:
    """The problems of a file, in its order.

    Args:
        path: JSON lines (gzipped or not) or Parquet. Either a problem each: `id`, lists `correct` and `rewards` (one of
            them may be absent), and `cluster` where it has one; or, with a `version` besides, a group of its responses each,
            which add up; or a response each: `problem_id` (in a run's own records `id` and `sample`), `correct`, `reward`.
            None stands for a response without a verdict.
        setting: that names it, told with what is wrong with it; None for none.

    Raises:
        DataError: the file is missing or empty, a row is of neither form, or a problem stands there twice.
    """
    problems: dict[str, Outcomes] = {}
    for where, row in read_rows(path, setting):
        # A run's own records call the problem `id` and number its responses.
        response_of = row.get("problem_id", row.get("id") if "sample" in row else None)
        if response_of is not None:
            verdict, reward = _verdicts([row.get("correct")], where), _rewards([row.get("reward")], where)
            found = Outcomes(str(response_of), verdict, reward, cluster_of(row))
        else:
            found = _problem(where, row)
            if found.id in problems and "version" not in row:
                raise DataError(f"{where}: problem {found.id} stands in this file already")
        before = problems.get(found.id, Outcomes(found.id, ()))
        both = (before.correct + found.correct, before.rewards + found.rewards)
        problems[found.id] = Outcomes(found.id, *both, found.cluster)
    if not problems:
        raise DataError(f"{path} has no rows")
    return list(problems.values())


def outcome_lines(problems: Iterable[Outcomes]) -> bytes:
    """A line a problem, as `read_outcomes` reads them."""
    lines = []
    for problem in problems:
        row: dict[str, Any] = {"id": problem.id, "correct": problem.correct, "rewards": problem.rewards}
        if problem.cluster is not None:
            row["cluster"] = problem.cluster
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def outcomes_of(rollouts: Sequence[Rollout]) -> Outcomes:
    """What became of a problem whose graded responses these are."""
    problem = rollouts[0].prompt.problem
    verdicts = [rollout.verdict for rollout in rollouts]
    correct = tuple(None if verdict is None else verdict.correct for verdict in verdicts)
    rewards = tuple(None if verdict is None else verdict.reward for verdict in verdicts)
    return Outcomes(problem.id, correct, rewards, cluster_of(problem.meta))


def cluster_of(meta: Mapping[str, Any]) -> str | None:
    """The cluster a row names in its field `cluster`."""
    name = meta.get("cluster")
    return None if name is None else str(name)


def _problem(where: str, row: Mapping[str, Any]) -> Outcomes:
    if row.get("id") is None:
        raise DataError(f"{where}: the row must have `id` (a problem a line) or `problem_id` (a response a line)")
    lists = [row.get("correct", []), row.get("rewards", [])]
    if not any(lists) or not all(isinstance(held, (list, tuple)) for held in lists):
        raise DataError(f"{where}: `correct` or `rewards` must be a list with a value for each response")
    return Outcomes(str(row["id"]), _verdicts(lists[0], where), _rewards(lists[1], where), cluster_of(row))


def _verdicts(held: Sequence[Any], where: str) -> tuple[bool | None, ...]:
    for value in held:
        if value not in (True, False, None):  # 0 and 1 are as good
            raise DataError(f"{where}: a verdict is true, false or null (none was given); got {value!r}")
    return tuple(None if value is None else bool(value) for value in held)


def _rewards(held: Sequence[Any], where: str) -> tuple[float | None, ...]:
    for value in held:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise DataError(f"{where}: a reward is a number or null (none was given); got {value!r}")
    return tuple(None if value is None else float(value) for value in held)
