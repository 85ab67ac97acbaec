"""The half of the module that measures: held-out problems, for validation, tests and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import lightning as L
import torch
from torchmetrics import SumMetric

from rlvr_lightning.evaluation.metrics import AvgAtK, PassAtK
from rlvr_lightning.protocols import RolloutData
from rlvr_lightning.tasks.outcomes import outcomes_of
from rlvr_lightning.types import VERDICT_KINDS, Outcomes, Prompt, Rollout


class EvaluatedModule(L.LightningModule):
    """Grades responses to held-out problems: avg@k and pass@k of the current policy.

    Args:
        eval_samples: k, responses to each problem.
    """

    def __init__(self, eval_samples: int) -> None:
        super().__init__()
        self.policy_version = 0
        self.predictions: list[Rollout] = []
        self.baseline: dict[str, float] = {}
        self.evaluation: dict[str, float] = {}
        self.evaluated_version = -1
        self.eval_metrics = torch.nn.ModuleDict({"avg": AvgAtK(eval_samples), "pass": PassAtK(eval_samples)})
        self.eval_samples = eval_samples
        self.eval_unjudged = SumMetric()
        self.eval_kinds = torch.nn.ModuleDict({kind: SumMetric() for kind in VERDICT_KINDS})
        self.num_unjudged = 0
        # Of this rank's problems, by their places among the held-out ones; of the last time they were measured.
        self.outcomes: dict[int, Outcomes] = {}

    @property
    def _data(self) -> RolloutData:
        return cast(RolloutData, self.trainer.datamodule)  # type: ignore[attr-defined]

    def enter(self, metrics: Mapping[str, float]) -> None:
        """Log what is known after `policy_version` optimizer steps.

        Lightning's loggers hear of an epoch only after its checkpoint is written, and count the steps themselves,
        wrongly after a resume in mid-epoch: they are told here. So are callbacks, such as early stopping: `self.log` looks through
        all metrics anew for each of them, 16 ms an epoch.
        """
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        # What other callbacks log at this moment stands under the same step.
        self.log("step", float(self.policy_version))
        # Lightning's check before training measures the policy as it is: the curves begin there, and after a resume it is known.
        if not self.trainer.sanity_checking or self.policy_version == 0:
            for logger in self.loggers:
                logger.log_metrics(dict(metrics), step=self.policy_version)

    def on_validation_epoch_start(self) -> None:
        """Sample from the current weights."""
        self.outcomes = {}
        self._data.sync_engine()

    def validation_step(self, prompts: list[Prompt], batch_idx: int) -> dict[str, list[Rollout]] | None:
        """Grade `eval_samples` responses to each prompt; one without a verdict is not right, and is counted apart.

        Returns:
            The responses, for callbacks; None where they would say nothing of the policy.
        """
        if not self._data.evaluates:
            return None
        rollouts = self._data.evaluate(prompts)
        self.eval_unjudged.update(sum(rollout.verdict is None for rollout in rollouts))
        for kind, count in self.eval_kinds.items():
            cast(SumMetric, count).update(sum(rollout.kind == kind for rollout in rollouts))
        correct = [rollout.verdict is not None and rollout.verdict.correct for rollout in rollouts]
        table = torch.tensor(correct, device=self.device).view(-1, self.eval_samples)
        for metric in self.eval_metrics.values():
            cast(AvgAtK, metric).update(table)
        for place, prompt in enumerate(prompts):
            first = place * self.eval_samples
            self.outcomes[prompt.index] = outcomes_of(rollouts[first : first + self.eval_samples])
        return {"rollouts": rollouts}

    def on_validation_epoch_end(self) -> None:
        """Log avg@k and pass@k; those before the first step are the baseline."""
        if not self._data.evaluates:
            self.evaluation = {}
            return
        self.evaluation = {name: float(cast(AvgAtK, m).compute()) for name, m in self.eval_metrics.items()}
        for metric in self.eval_metrics.values():
            cast(AvgAtK, metric).reset()
        self.evaluated_version = self.policy_version
        if self.policy_version == 0:
            self.baseline = dict(self.evaluation)
        self.num_unjudged = int(self.eval_unjudged.compute())
        counts = {kind: float(cast(SumMetric, count).compute()) for kind, count in self.eval_kinds.items()}
        for count in (self.eval_unjudged, *self.eval_kinds.values()):
            cast(SumMetric, count).reset()
        measured = {f"val/{name}_at_k": value for name, value in self.evaluation.items()}
        shares = {f"val/verifier_{kind}": count / max(sum(counts.values()), 1) for kind, count in counts.items()}
        self.enter({**measured, **shares, "val/unjudged": float(self.num_unjudged)})

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """Graded responses to each prompt, kept in `predictions` (Lightning's own collection takes tensors alone)."""
        self.predictions.extend(self._data.evaluate(prompts))
