"""Problems from `datasets.load_dataset`: the hub, or a local folder of data files."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_lightning.tasks.hub import read_hub
from rlvr_lightning.tasks.hygiene import Screening
from rlvr_lightning.tasks.rows import RowFormat, divide, to_problems
from rlvr_lightning.types import Problem


class HuggingFaceTask:
    """Problems from a data set.

    Args:
        path: of the data set on the hub, or a local folder.
        name: its configuration, or None.
        split: to learn from.
        held_out_split: to validate on; None to take `held_out` rows of `split`.
        problem_field, answer_field, id_field: names of the fields.
        answer_pattern: a regular expression whose first group is the answer within its field.
        system: a system message.
        template: the user message; `{problem}` stands for the question.
        held_out: rows to validate on: the first of `held_out_split`, or chosen from `split` by the seed.
        limit: training problems at most, of those that stay.
        seed: of the choice of held-out rows.
        decontaminate: whether training problems that overlap with evaluation problems are dropped.
        evaluation_paths: files of evaluation problems they are compared with besides the held-out ones.
        difficulty: lowest and highest solve rate of training problems; None for any.
        solve_rates: a file of `predict` that says how often each was solved; goes with `difficulty`.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        DataError: the data set or a row cannot be used.
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        held_out_split: str | None = None,
        problem_field: str = "problem",
        answer_field: str | None = "answer",
        id_field: str = "id",
        answer_pattern: str | None = None,
        system: str | None = None,
        template: str = "{problem}",
        held_out: int = 64,
        limit: int | None = None,
        seed: int = 0,
        decontaminate: bool = False,
        evaluation_paths: Sequence[str] = (),
        difficulty: Sequence[float] | None = None,
        solve_rates: str | None = None,
    ) -> None:
        screening = Screening(decontaminate, evaluation_paths, difficulty, solve_rates)
        form = RowFormat(problem_field, answer_field, id_field, answer_pattern, system, template)
        train = self._load(path, name, split, form)
        apart = None if held_out_split is None else self._load(path, name, held_out_split, form)
        train, self._held_out = divide(train, held_out, limit, seed, apart)
        # All of an evaluation file counts, also what is not validated on.
        train, self.hygiene = screening.apply(train, self._held_out if apart is None else apart, form)
        self._train = train[:limit]

    @staticmethod
    def _load(path: str, name: str | None, split: str, form: RowFormat) -> list[Problem]:
        return to_problems(read_hub(path, name, split), form, f"{path} ({split})")

    def train(self) -> Sequence[Problem]:
        """Problems to learn from."""
        return self._train

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on."""
        return self._held_out
