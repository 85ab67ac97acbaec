"""An engine that holds the policy: started once, given new weights when it has older ones."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlvr_lightning.protocols import ModelFolder, RolloutEngine, TrainedModule


class SyncedEngine:
    """Keeps an engine at the policy's newest weights.

    Args:
        engine: draws responses.
        source: the model's folder.
    """

    def __init__(self, engine: RolloutEngine, source: ModelFolder) -> None:
        self.engine, self.source = engine, source
        self._length, self._started = 0, False

    def reserve(self, length: int) -> None:
        """Prompt and response together may be as long as this [tokens]. Before the engine is started."""
        assert not self._started or length <= self._length, "the engine has been started for shorter ones"
        self._length = max(self._length, length)

    def sync(self, module: TrainedModule, device: torch.device, phase: Callable[[str], None] | None = None) -> None:
        """Give the engine the module's weights, if it has others. Every rank must call it.

        Args:
            module: whose policy it is.
            device: of this rank.
            phase: told when weights travel.
        """
        if not self._started:
            self.engine.start(self.source, device, self._length, module.compute_dtype)
            self._started = True
        if self.engine.policy_version != module.policy_version:
            if phase is not None:
                phase("syncing")
            self.engine.sync(module.policy.full_weights(), module.policy_version)

    def close(self) -> None:
        """Free the engine; it may be started again."""
        if self._started:
            self.engine.close()
            self._started = False
            self.engine.policy_version = -1
