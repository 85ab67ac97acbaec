"""What a task says is worth watching while a policy learns: how probable single tokens are, and which kinds of responses there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols.rollouts import WatchedTask
from rlvr_lightning.rollout.micro_batches import Budget, Layout
from rlvr_lightning.types import Probe, Prompt, Rollout, Row


class WatchingCallback(Callback):
    """Logs at every validation, over the held-out problems and all ranks: `val/probe/NAME`, the mean probability of a probe's token
    where its prefix is put before it; `val/style_share/STYLE`, the share of responses of a kind; `val/style_accuracy/STYLE`, of those
    the right ones.

    Args:
        task: says what is watched.
        source: of the tokenizer.
        budget: what is scored at a time.

    Raises:
        ConfigError: a probe's token is not a single one.
    """

    def __init__(self, task: WatchedTask, source: ModelSource, budget: Budget) -> None:
        self.task, self.source, self.budget = task, source, budget
        self._probed = {probe.name: self._tokens(probe) for probe in task.probes}
        self._begin()

    def _begin(self) -> None:
        # For each probe and each style: how many, and how much of it.
        self._counts = {name: [0.0, 0.0] for name in (*self._probed, *self.task.styles)}

    def _tokens(self, probe: Probe) -> tuple[int, ...]:
        encode = partial(self.source.tokenizer.encode, add_special_tokens=False)
        prefix, whole = encode(probe.prefix) if probe.prefix else [], encode(probe.prefix + probe.token)
        if len(whole) != len(prefix) + 1 or whole[: len(prefix)] != prefix:
            raise ConfigError(
                f"probe {probe.name}: with model.path={self.source.path}, {probe.token!r} after {probe.prefix!r} is not one token"
            )
        return tuple(whole)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the responses, and score the probes."""
        if isinstance(outputs, Mapping):
            self._count(outputs["rollouts"])
            self._probe(batch, pl_module)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Log them."""
        names = list(self._counts)
        numbers = Step().sum(torch.tensor([self._counts[name] for name in names], dtype=torch.float64)).tolist()
        found, logged = dict(zip(names, numbers, strict=True)), dict[str, float]()
        responses = sum(found[style][0] for style in self.task.styles)
        for name in self._probed:
            count, total = found[name]
            logged |= {f"val/probe/{name}": total / count} if count else {}
        for style in self.task.styles:
            count, right = found[style]
            logged |= {f"val/style_share/{style}": count / responses} if responses else {}
            logged |= {f"val/style_accuracy/{style}": right / count} if count else {}
        self._begin()
        if logged:
            pl_module.enter(logged)

    on_test_epoch_end = on_validation_epoch_end

    def _count(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            count = self._counts[self.task.style(rollout.text)]
            count[0] += 1
            count[1] += rollout.verdict is not None and rollout.verdict.correct

    def _probe(self, prompts: Sequence[Prompt], module: Any) -> None:
        """Every rank must call it."""
        layout = Layout(self.budget, int(self.source.tokenizer.pad_token_id), packed=False)
        for name, tokens in self._probed.items():
            rows = [_row(place, prompt.token_ids + tokens) for place, prompt in enumerate(prompts)]
            scored = layout.scored(rows, partial(module.score, on_policy=False))
            logprobs = [row.old_logprobs[-1] for row in scored if row.old_logprobs is not None]
            self._counts[name][0] += len(logprobs)
            self._counts[name][1] += float(torch.stack(logprobs).exp().sum()) if logprobs else 0.0


def _row(place: int, ids: tuple[int, ...]) -> Row:
    nothing = torch.zeros(len(ids) - 1)
    last = torch.arange(len(nothing)) == len(nothing) - 1
    return Row(place, 0, torch.tensor(ids), last, nothing, nothing, nothing)
