"""Rollouts of an earlier run in the place of new ones: the same numbers again, or another objective on the same responses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.rollout.recorded import read_file, recorded_files
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

if TYPE_CHECKING:
    from rlvr_lightning.protocols import ModelFolder

_Key = tuple[int, tuple[int, ...]]


class ReplayEngine:
    """Answers with what a run has recorded, request by request: the prompt and its seed name a response.

    Whether the policy that asks is the one that answered then is told by the answers to the fixed prompts the run has
    recorded after each sync (`on_policy`).

    Args:
        path: output folder of the run.

    Raises:
        ConfigError: there is no such run.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if not (self.path / "rollouts").is_dir():
            raise ConfigError(f"engine.path={path} holds no run: its rollouts/ is missing")
        self.policy_version = -1
        self.on_policy = True
        self._files: list[Path] = []
        self._held: dict[_Key, dict[str, Any]] = {}
        self._held_out: tuple[int, dict[_Key, dict[str, Any]]] = (-1, {})
        self._dtype = torch.float32

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Find the run's files.

        Raises:
            DataError: there are none.
        """
        self._files, self._dtype = recorded_files(self.path / "rollouts"), dtype

    @property
    def weights_dtype(self) -> torch.dtype:
        """There are no weights; the trainer's own."""
        return self._dtype

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Nothing is sampled from them; a sharded policy's are gathered all the same, by all ranks or none."""
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """What was answered then."""
        return [generation for _, generation in self.stream(requests, sampling)]

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """What was answered then, in order.

        Raises:
            DataError: the run was not asked that.
        """
        for place, request in enumerate(requests):
            yield place, self._found((request.seed, request.token_ids))

    def canary(self, version: int) -> list[Generation]:
        """The answers to the fixed prompts after the sync at a version; none where it had no such sync."""
        file = self.path / "canary.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [
            Generation(tuple(row["token_ids"]), tuple(row["logprobs"]), "length", version)
            for row in rows
            if row["version"] == version
        ]

    def close(self) -> None:
        """Forget what was read."""
        self._held, self._held_out = {}, (-1, {})

    def _found(self, key: _Key) -> Generation:
        if self._held_out[0] != self.policy_version:
            self._held_out = (self.policy_version, self._read_held_out())
        if key in self._held_out[1]:
            return _generation(self._held_out[1][key])
        # Phases are asked for in order: what was read is needed once.
        while key not in self._held and self._files:
            self._held |= _by_key(self._files.pop(0))
        if key not in self._held:
            raise DataError(
                f"engine=replay: {self.path} has not recorded what is asked (seed {key[0]}); a replay takes the run's seed, "
                "task, model and prompts, as many responses and epochs at most, and no benchmarks"
            )
        return _generation(self._held.pop(key))

    def _read_held_out(self) -> dict[_Key, dict[str, Any]]:
        found: dict[_Key, dict[str, Any]] = {}
        for path in sorted((self.path / "held_out").glob(f"version_{self.policy_version:08}.rank_*.parquet")):
            found |= _by_key(path)
        return found


def _by_key(path: Path) -> dict[_Key, dict[str, Any]]:
    return {(row["seed"], tuple(row["prompt_token_ids"])): row for row in read_file(path)}


def _generation(row: dict[str, Any]) -> Generation:
    return Generation(tuple(row["token_ids"]), tuple(row["logprobs"]), row["finish_reason"], row["policy_version"])
