"""Engines of every kind as streams of responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlvr_lightning.protocols import RolloutEngine, StreamingEngine
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec


class AtOnce:
    """An engine that cannot stream.

    Args:
        engine: draws.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """All responses, in order."""
        return iter([*enumerate(self.engine.generate(requests, sampling))])


def stream_of(engine: RolloutEngine) -> StreamingEngine | AtOnce:
    """The engine itself, or one that hands everything over at its end."""
    return engine if isinstance(engine, StreamingEngine) else AtOnce(engine)
