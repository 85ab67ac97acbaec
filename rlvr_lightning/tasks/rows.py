"""From rows of a data set to problems: shared by tasks that read files and hubs."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.types import Problem

# Of a row, by the names and places that lead to it: {row.starter_code}, {row.tests.asserts.0}.
FIELD = r"\{row\.(\w+(?:\.\w+)*)\}"


def check_template(template: str) -> None:
    """Does it say where the question goes?

    Raises:
        ConfigError: it does not.
    """
    if "{problem}" not in template:
        raise ConfigError(f"task.template must contain {{problem}}; got {template!r}")


@dataclass(frozen=True)
class RowFormat:
    """Which field is what, and how a problem is put to the model.

    Args:
        problem_field: the question.
        answer_field: the gold answer; None where rows have none (a program is judged by tests), and the question as it
            stands in the row is kept with the problem then.
        id_field: a unique name; rows without it are numbered.
        answer_pattern: a regular expression whose first group is the answer within its field, or None for all of it.
        system: a system message, or None.
        template: the user message; `{problem}` stands for the question, `{row.tests.asserts.0}` for another field of the row.

    Raises:
        ConfigError: the template lacks `{problem}` or shows the answer, or the pattern is no regular expression with a group.
    """

    problem_field: str = "problem"
    answer_field: str | None = "answer"
    id_field: str = "id"
    answer_pattern: str | None = None
    system: str | None = None
    template: str = "{problem}"

    def __post_init__(self) -> None:
        check_template(self.template)
        self._check_fields()
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ConfigError(f"task.answer_pattern is no regular expression: {error}") from error
            if not groups:
                raise ConfigError("task.answer_pattern needs a group around the answer")

    def _check_fields(self) -> None:
        """Can what the template shows besides the question be shown?"""
        if len(re.findall(FIELD, self.template)) < self.template.count("{row"):
            raise ConfigError(
                "template: a field of the row is shown by {row.NAME} or {row.NAME.0.NAME}, of letters, digits and _ alone; "
                f"got {self.template!r}"
            )
        kept = (self.problem_field, self.answer_field, self.id_field, "problem")
        for path in re.findall(FIELD, self.template):
            if path.split(".")[0] in kept:
                raise ConfigError(
                    f"template: {{row.{path}}} cannot be shown: {{problem}} is the question, the answer is not for the model to "
                    "see, and ids say nothing"
                )

    def problem(self, row: Mapping[str, Any], where: str) -> Problem:
        """The row's problem.

        Raises:
            DataError: a field is missing or empty; `where` says which row.
        """
        question = self.field(row, self.problem_field, where)
        answer = "" if self.answer_field is None else self.field(row, self.answer_field, where)
        if self.answer_pattern is not None:
            match = re.search(self.answer_pattern, answer)
            if match is None:
                raise DataError(f"{where}: task.answer_pattern finds no answer in {answer[-60:]!r}")
            answer = match.group(1).strip()
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": question.join(self._around(row, where))})
        used = (self.problem_field, self.answer_field, self.id_field)
        meta = {key: value for key, value in row.items() if key not in used}
        if self.answer_field is None:
            meta["problem"] = question
        name = row.get(self.id_field)
        return Problem(where if name is None else str(name), tuple(messages), answer, meta)

    def question(self, problem: Problem) -> str:
        """What is asked of a problem of this form, without the template around it."""
        content = problem.messages[-1]["content"]
        before, *after = self._around(problem.meta, problem.id)
        length = (len(content) - len(before) - sum(map(len, after))) // len(after)
        return content[len(before) : len(before) + length]

    def _around(self, row: Mapping[str, Any], where: str) -> list[str]:
        """What the template has before, between and after the question. Not str.format: LaTeX is full of braces."""
        parts = self.template.split("{problem}")
        return [re.sub(FIELD, lambda match: _shown(row, match.group(1), where), part) for part in parts]

    @staticmethod
    def field(row: Mapping[str, Any], field: str, where: str) -> str:
        """A field's text.

        Raises:
            DataError: it is missing or empty.
        """
        value = row.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            state = "is empty" if field in row else "is missing"
            raise DataError(
                f"{where}: field {field!r} {state}; the row has {', '.join(map(str, row)) or 'no fields'} "
                "(task.problem_field and task.answer_field name the fields)"
            )
        return value.strip()


def _shown(row: Mapping[str, Any], path: str, where: str) -> str:
    """A field that the template shows; it may be empty.

    Raises:
        DataError: the row has no such field, or it is neither a text nor a number.
    """
    value: Any = row
    for step in path.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise DataError(
                f"{where}: the template shows {{row.{path}}}, and the row has no {step!r} there; it has {', '.join(map(str, row))}"
            )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{where}: the template shows {{row.{path}}}, which is neither a text nor a number: {value!r:.60}"
        )
    return str(value)


def to_problems(rows: Iterable[tuple[str, Mapping[str, Any]]], form: RowFormat, source: str) -> list[Problem]:
    """All rows' problems.

    Args:
        rows: where each row stands (for messages), and the row.
        form: which field is what.
        source: the file or data set (for messages).

    Raises:
        DataError: a row cannot be used, two have the same id, or there is none.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        problem = form.problem(row, where)
        if problem.id in seen:
            raise DataError(f"{where}: id {problem.id!r} stands at {seen[problem.id]} already")
        seen[problem.id] = where
        problems.append(problem)
    if not problems:
        raise DataError(f"{source} has no rows")
    return problems


def divide(
    problems: Sequence[Problem], held_out: int, limit: int | None, seed: int, apart: Sequence[Problem] | None = None
) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems: disjoint ones of one file, or those of two files.

    Args:
        problems: all of them.
        held_out: how many to validate on: the first of `apart`, or taken from a seeded shuffle of `problems`.
        limit: training problems at most, taken when the others are left out; here it is only checked.
        seed: of the shuffle.
        apart: another file's problems to validate on, or None.

    Raises:
        ConfigError: a number is out of range, or nothing is left to learn from.
    """
    if held_out < 0 or (limit is not None and limit < 1):
        raise ConfigError(f"task.held_out must be at least 0 and task.limit at least 1; got {held_out} and {limit}")
    if apart is not None:
        return list(problems), list(apart[:held_out])
    if held_out >= len(problems):
        raise ConfigError(f"task.held_out={held_out} leaves nothing to learn from: there are {len(problems)} rows")
    order = list(range(len(problems)))
    random.Random(f"held-out-{seed}").shuffle(order)
    taken = sorted(order[len(order) - held_out :])
    chosen = set(taken)
    train = [problem for index, problem in enumerate(problems) if index not in chosen]
    return train, [problems[index] for index in taken]
