"""A step of micro-batches of which some are empty, as a rank has them that must keep in step with others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from objectives import MEAN, OBJECTIVES, identity, random_case
from test_foresight import Logits, V, batch_of

from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.objective.step import Step
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.types import StepBatch, TokenBatch


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_empty_micro_batch_changes_nothing(name: str, on_policy: bool) -> None:
    objective, case = OBJECTIVES[name](MEAN), random_case(4, 12, on_policy=on_policy)
    if objective.on_policy_only and not on_policy:
        pytest.skip("on-policy alone")
    micro, empty = batch_of(objective, case, on_policy=on_policy), collate([], 0, packed=True)
    if not objective.requires_ref:
        micro = replace(micro, ref_logprobs=None)

    class Either:
        def __call__(self, batch: TokenBatch, *rest: Any) -> Any:
            known = batch.input_ids.shape == micro.input_ids.shape
            hidden = case.logits.detach() if known else torch.zeros(1, 1, V, dtype=torch.float64)
            return Logits(hidden.requires_grad_(), identity(V))(batch, *rest)

    scorer = Scorer(cast(Any, Either()), None, objective, 1.0)

    def losses(*micros: TokenBatch) -> list[float]:
        planner, found = scorer.planner(StepBatch(micros), Step()), []
        for place, one in enumerate(micros):
            stats = scorer.stats(one)
            found.append(objective(stats, planner.plan(place, stats)).loss.item())
        return found

    (alone,) = losses(micro)
    assert abs(alone) > 1e-6
    assert losses(micro, empty) == pytest.approx([alone, 0.0], rel=1e-12)
    assert losses(empty, micro, empty) == pytest.approx([0.0, alone, 0.0], rel=1e-12)
