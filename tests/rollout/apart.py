"""An engine apart for tests: transformers' own in a thread, with answers that come when, and fail how, a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from torch import Tensor

from rlvr_lightning.errors import EngineLostError
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec


class Apart(TransformersEngine):
    """Draws in a thread of its own; what is under way when weights come is drawn with the old ones, as a server does."""

    is_apart = True

    def __init__(self) -> None:
        super().__init__(batch_size=4)
        self._pool = ThreadPoolExecutor(1)
        self._weights = threading.Lock()
        self.asked: list[tuple[int, int]] = []
        self.synced: list[int] = []
        self.lost = False
        # Told of each request before it is drawn, in the engine's thread.
        self.before: Callable[[GenerationRequest], None] = lambda request: None

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        with self._weights:
            super().sync(weights, policy_version)
            self.synced.append(policy_version)
            self.lost = False

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Future[Generation]]:
        return [self._pool.submit(self._one, request, sampling) for request in requests]

    def _one(self, request: GenerationRequest, sampling: SamplingSpec) -> Generation:
        self.before(request)
        if self.lost:
            raise EngineLostError("gone")
        with self._weights:
            self.asked.append((self.policy_version, request.seed))
            (drawn,) = self._generate_batch([request], sampling)
        return drawn

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        places = {future: place for place, future in enumerate(self.submit(requests, sampling))}
        for future in as_completed(places):
            yield places[future], future.result()

    def replicas(self) -> list[Apart]:
        return [self]

    def take_counts(self) -> dict[str, int]:
        return {}
