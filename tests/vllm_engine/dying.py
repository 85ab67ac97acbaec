"""An out-of-tree engine for `test_rank_dies.py`: servers, of whose ranks one is killed while they draw."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from rlvr_lightning.rollout.engines.vllm.server import VLLMServerEngine
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec


class DyingRank(VLLMServerEngine):
    """Rank `rank` is killed when the first response of draw `draw` comes (0 is the held-out problems before training)."""

    def __init__(self, rank: int, draw: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.mine, self.draw, self.drawn = int(os.environ.get("LOCAL_RANK", "0")) == rank, draw, 0

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        due, self.drawn = self.mine and self.drawn == self.draw, self.drawn + 1
        for place, drawn in super().stream(requests, sampling):
            if due:
                # Of the other responses the servers draw on.
                assert len(requests) > 8
                os.kill(os.getpid(), signal.SIGKILL)
            yield place, drawn
