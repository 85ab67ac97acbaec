"""What a study consists of: methods, seeds, and the runs that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import ConfigError, nearest

FINISHED = "finished.json"
RUNS = "runs"
# What methods are always compared by.
COMPARED = "avg@k"


@dataclass(frozen=True)
class Method:
    """One way to train.

    Args:
        overrides: of its runs, as on the command line; `conf=...` among them.
        seeds: of its runs; None for the study's.
        title: as it is called in tables and figures; None for its name.
    """

    overrides: Sequence[str]
    seeds: Sequence[int] | None = None
    title: str | None = None


@dataclass(frozen=True)
class Job:
    """A run of a study.

    Args:
        method: its name.
        seed: of the run.
        folder: its output folder.
        overrides: as on the command line.
    """

    method: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / FINISHED).exists()


@dataclass(frozen=True)
class Study:
    """Methods times seeds.

    Args:
        name: of the study.
        question: that it shall answer, in a sentence.
        methods: by name.
        baseline: the method others are compared with.
        seeds: of every method that names none of its own.
        overrides: of every run.
        success: a run has escaped where its last avg@k is above this.
        probe: of the task, shown in the table and over the steps; None for none.
        threads: of a run; results do not depend on the machine's number of cores.
        shown: methods of a figure of their own, which shows the point; none for no such figure.
        also: what methods are compared by besides avg@k, in tables and figures: series of the log by title.

    Raises:
        ConfigError: there is no method, no seed, no such baseline, or no such method to show; `also` names no series by title.
    """

    name: str
    question: str
    methods: Mapping[str, Method]
    baseline: str
    seeds: Sequence[int]
    overrides: Sequence[str] = field(default_factory=tuple)
    success: float = 0.5
    probe: str | None = None
    threads: int = 1
    shown: Sequence[str] = ()
    also: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, names in (("baseline", [self.baseline]), ("shown", self.shown)):
            for name in names:
                if name not in self.methods:
                    raise ConfigError(f"study.{key}={name} is none of its methods; {nearest(name, [*self.methods])}")
        if not isinstance(self.also, Mapping) or COMPARED in self.also:
            raise ConfigError(
                f"study.also must be series by title (and avg@k is compared anyway), such as entropy: policy/entropy; got {self.also}"
            )
        for name in self.methods:
            seeds = self.seeds_of(name)
            if not seeds or len(set(seeds)) != len(seeds):
                raise ConfigError(f"study.methods.{name}: seeds must be there, each once; got {list(seeds)}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Study:
        """From a configuration.

        Raises:
            ConfigError: it has a key that is none, or lacks one.
        """
        methods = settings.get("methods", {})
        try:
            return cls(**{**settings, "methods": {name: Method(**method) for name, method in methods.items()}})
        except TypeError as error:
            raise ConfigError(f"study: {str(error).rpartition('__init__() ')[2]}") from error

    def seeds_of(self, method: str) -> Sequence[int]:
        """Of a method's runs."""
        own = self.methods[method].seeds
        return self.seeds if own is None else own

    def title_of(self, method: str) -> str:
        """As a method is called in tables and figures."""
        return self.methods[method].title or method

    def jobs(self, folder: Path) -> list[Job]:
        """All runs, seed after seed, so that whoever stops early has something of each method.

        Args:
            folder: of the study; each run has one of its own in it.
        """
        pairs = [(method, seed) for method in self.methods for seed in self.seeds_of(method)]
        order = {method: place for place, method in enumerate(self.methods)}
        return [
            Job(
                method,
                seed,
                folder / RUNS / method / f"seed_{seed}",
                (*self.methods[method].overrides, *self.overrides, f"seed={seed}"),
            )
            for method, seed in sorted(pairs, key=lambda pair: (self.seeds_of(pair[0]).index(pair[1]), order[pair[0]]))
        ]
