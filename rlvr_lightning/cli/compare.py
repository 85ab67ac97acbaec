"""`compare FIRST SECOND`: what two policies came to on the same problems, problem by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, get_args

from rich.console import Console

from rlvr_lightning.errors import ConfigError, DataError, nearest
from rlvr_lightning.evaluation.statistics import Difference, as_json, as_markdown, as_table, compare_files
from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.tasks.files import SUFFIXES

Of = Literal["correct", "rewards"]
OPTIONS = ("output", "of")


def compare(arguments: Sequence[str]) -> None:
    """Show, and with `output=FOLDER` write, how much better the second is.

    Args:
        arguments: two files of `test` or `predict`, or two folders that hold such files under the same names; then
            `output=FOLDER` and `of=rewards`.

    Raises:
        ConfigError: the arguments are not these.
        DataError: a file cannot be used, or they are not of the same problems.
    """
    paths = [Path(item).expanduser() for item in arguments if "=" not in item]
    options = dict(item.split("=", 1) for item in arguments if "=" in item)
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(f"compare has no setting {name}; {nearest(name, OPTIONS)}")
    of = options.get("of", "correct")
    if len(paths) != 2 or of not in get_args(Of):
        raise ConfigError(
            "compare takes two files or folders: compare FIRST SECOND [output=FOLDER] [of=correct|rewards]"
        )
    first, second = paths
    found = [replace(compare_files(one, other, cast(Of, of)), name=name) for name, one, other in pairs(first, second)]
    # On a narrower screen its lines go on below, and no number is cut.
    console = Console(width=max(Console().width, 140))
    console.print(as_table(f"{second} against {first}, problem by problem", found))
    if "output" in options:
        console.print(f"compared: {_write(Path(options['output']).expanduser(), first, second, found)}", soft_wrap=True)


def pairs(first: Path, second: Path) -> list[tuple[str, Path, Path]]:
    """What is compared with what, and what it is called.

    Raises:
        DataError: one is a file and the other a folder, or two folders have no name in common.
    """
    if not (first.is_dir() or second.is_dir()):
        return [(_stem(second), first, second)]
    if not (first.is_dir() and second.is_dir()):
        raise DataError(f"{first} and {second} must both be files, or both folders of them")
    mine, theirs = (
        {path.name: path for path in sorted(folder.iterdir()) if _is_one(path)} for folder in (first, second)
    )
    common = [name for name in mine if name in theirs]
    if not common:
        here, there = (", ".join(names) or "none" for names in (mine, theirs))
        raise DataError(f"{first} and {second} have no file of problems in common: {here} and {there}")
    return [(_stem(mine[name]), mine[name], theirs[name]) for name in common]


def _is_one(path: Path) -> bool:
    return path.is_file() and path.name.endswith(SUFFIXES)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


def _write(folder: Path, first: Path, second: Path, found: Sequence[Difference]) -> Path:
    about = {"first": str(first), "second": str(second)}
    write_whole(folder / "comparison.json", as_json(found, about).encode())
    write_whole(folder / "comparison.md", as_markdown(found).encode())
    return folder / "comparison.md"
