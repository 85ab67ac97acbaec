"""What a verifier may say of itself; none of it is needed. It imports nothing, and workers start fast."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Judge(Protocol):
    """A verifier that says what it judges; one that does not say judges answers.

    Args:
        judges: `answer` (what a response ends in, compared with the gold answer) or `code` (a program, run on tests).
    """

    judges: str


@runtime_checkable
class Isolated(Protocol):
    """A verifier that says whether it may hang, die or take long, and is therefore called in processes of its own.

    Args:
        isolated: whether it is.
    """

    isolated: bool


@runtime_checkable
class Concurrent(Protocol):
    """A verifier that waits rather than computes, and is called in several threads of the run's own process.

    Args:
        concurrency: calls at a time.
    """

    concurrency: int


@runtime_checkable
class Elastic(Concurrent, Protocol):
    """A concurrent verifier of which more calls may be under way while some of them merely wait.

    Args:
        most_concurrency: calls at a time where others are held up.
    """

    most_concurrency: int


@runtime_checkable
class Composed(Protocol):
    """A verifier that is made of others, whose rewards are logged by name.

    Args:
        part_names: keys of its verdicts' `parts`.
    """

    part_names: tuple[str, ...]


@runtime_checkable
class Startable(Protocol):
    """A verifier that takes a while before its first verdict, which is no part of that verdict's time."""

    def start(self) -> None:
        """Get ready. Calling it twice does no harm."""
        ...


@runtime_checkable
class Closable(Protocol):
    """A verifier that holds something: processes, connections."""

    def close(self) -> None:
        """Let it go. Calling it twice does no harm, and it may be called again afterwards."""
        ...
