"""An engine that holds the policy: started once, given new weights when it has older ones, checked, brought back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence

import torch

from rlvr_lightning.errors import EngineLostError, RolloutError
from rlvr_lightning.protocols import (
    AdapterEngine,
    ApartEngine,
    ModelFolder,
    RecordedEngine,
    RestingEngine,
    RolloutEngine,
    TrainedModule,
    TypedEngine,
)
from rlvr_lightning.rollout.canary import Canary
from rlvr_lightning.rollout.gathering import from_all_ranks, is_first_rank
from rlvr_lightning.rollout.streams import stream_of
from rlvr_lightning.rollout.weight_sums import PolicyWeights, Summed, base_sums
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

log = logging.getLogger(__name__)

# Times an engine is brought back for one draw.
MOST_RETURNS = 3
# What an engine apart counts.
MENDED = ("retries", "restarts", "refused")


class SyncedEngine:
    """Keeps an engine at the policy's newest weights, and draws from it.

    Args:
        engine: draws responses.
        source: the model's folder.
    """

    def __init__(self, engine: RolloutEngine, source: ModelFolder) -> None:
        self.engine, self.source = engine, source
        self.canary: Canary | None = None
        # Responses drawn with weights that are too old, since the last look.
        self.refused = 0
        self._length, self._started = 0, False
        self._last: tuple[TrainedModule, torch.device] | None = None
        # Of the weights an engine that takes adapters has read itself: they never change.
        self._base: dict[str, Summed] | None = None

    def reserve(self, length: int) -> None:
        """Prompt and response together may be as long as this [tokens]. Before the engine is started."""
        assert not self._started or length <= self._length, "the engine has been started for shorter ones"
        self._length = max(self._length, length)

    def sync(self, module: TrainedModule, device: torch.device, phase: Callable[[str], None] | None = None) -> bool:
        """Give the engine the module's weights, if it has others, and see that it holds them. Every rank must call it.

        Args:
            module: whose policy it is.
            device: of this rank.
            phase: told when weights travel.

        Returns:
            Whether it had others.

        Raises:
            RolloutError: on every rank, where the engine does not take them, or draws from others afterwards.
        """
        self._last = (module, device)
        if not self._started:
            if phase is not None:
                phase("starting")
            if isinstance(self.engine, AdapterEngine):
                self.engine.offer(module.policy.adapters())
            self.engine.start(self.source, device, self._length, module.compute_dtype)
            self._started = True
        if self.engine.policy_version != module.policy_version:
            if phase is not None:
                phase("syncing")
            self._give(module)
            return True
        return False

    def _give(self, module: TrainedModule) -> None:
        dtype = self.engine.weights_dtype if isinstance(self.engine, TypedEngine) else module.compute_dtype
        if isinstance(self.engine, AdapterEngine) and self.engine.takes_adapters:
            self._base = self._base or base_sums(module, dtype)
        weights = PolicyWeights(module, dtype, self._base)
        for _ in range(MOST_RETURNS + 1):
            self.engine.sync(weights, module.policy_version)
            if self.canary is None or self.canary.check(self.engine, module, weights.sums):
                break
        else:
            raise RolloutError(f"the engine was lost {MOST_RETURNS + 1} times while it was given the policy's weights")
        if not self.on_policy and is_first_rank():
            log.warning(
                "engine=replay: the recorded responses are another policy's than the one at step %d: learning from them is "
                "off-policy, and the held-out ones say nothing of it",
                module.policy_version,
            )

    @property
    def on_policy(self) -> bool:
        """Whether responses are drawn from the policy of the last sync."""
        return self.engine.on_policy if isinstance(self.engine, RecordedEngine) else True

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """Each response as it ends, with its request's place. Every rank must call it where the engine is one apart.

        An engine that is lost, or has forgotten its weights, is given them again, and what is missing is drawn then.

        Raises:
            RolloutError: on every rank, where that does not help.
        """
        if not isinstance(self.engine, ApartEngine):
            yield from stream_of(self.engine).stream(requests, sampling)
            return
        missing = dict(enumerate(requests))
        for _ in range(MOST_RETURNS + 1):
            lost = yield from self._drawn_of(missing, sampling)
            if not self.bring_back(lost):
                return
        raise RolloutError(f"the engine was lost {MOST_RETURNS + 1} times while it drew for one phase")

    def _drawn_of(
        self, missing: dict[int, GenerationRequest], sampling: SamplingSpec
    ) -> Generator[tuple[int, Generation], None, bool]:
        """Draw what is missing as far as it goes; whether the engine is lost is returned."""
        places = list(missing)
        try:
            for number, drawn in stream_of(self.engine).stream([missing[place] for place in places], sampling):
                if self.takes(drawn.policy_version, self.engine.policy_version):
                    missing.pop(places[number])
                    yield places[number], drawn
        except EngineLostError as error:
            log.warning("%s", error)
            return True
        return bool(missing)

    def takes(self, version: int, least: int) -> bool:
        """Is a response taken that was drawn with the weights of `version`? Others are counted in `refused`."""
        fits = least <= version <= self.engine.policy_version
        self.refused += not fits
        return fits

    def bring_back(self, lost: bool) -> bool:
        """Give the engine its weights again where a rank has lost it. Every rank must call it.

        Returns:
            Whether that was so.
        """
        if not any(from_all_ranks([lost])):
            return False
        assert self._last is not None
        self._give(self._last[0])
        return True

    def metrics(self) -> dict[str, float]:
        """How far engine and trainer were apart after the last sync [nats], and what went wrong and was mended since the
        last call. Every rank must call it.
        """
        gaps = {} if self.canary is None else {"gap": self.canary.gap, "gap_max": self.canary.gap_max}
        logged = {f"rollout/canary_{name}": value for name, value in gaps.items()}
        if isinstance(self.engine, RecordedEngine):
            logged["rollout/off_policy"] = float(not self.engine.on_policy)
        if isinstance(self.engine, ApartEngine):
            counts = {**dict.fromkeys(MENDED, 0), **self.engine.take_counts()}
            counts["refused"] += self.refused
            self.refused = 0
            of_all = from_all_ranks([counts])
            logged |= {f"engine/{name}": float(sum(one.get(name, 0) for one in of_all)) for name in MENDED}
        return logged

    def rest(self) -> None:
        """Nothing is drawn until the next sync."""
        if self._started and isinstance(self.engine, RestingEngine):
            self.engine.rest()

    def close(self) -> None:
        """Free the engine; it may be started again."""
        if self._started:
            self.engine.close()
            self._started, self._base = False, None
            self.engine.policy_version = -1
