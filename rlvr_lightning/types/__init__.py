"""The values that flow through a run, in pipeline order.

Dimension legend: P prompts, G responses a prompt (`group_size`), B rows, L tokens of a row (prompt and response), T = L - 1
tokens that another one scores, V vocabulary. Floats are float32 in training and float64 in the tests; probabilities are
natural logarithms (nats) wherever a name says `logprobs`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rlvr_lightning.types.outcomes import Outcomes
from rlvr_lightning.types.rollouts import (
    VERDICT_KINDS,
    Episode,
    Generation,
    GenerationRequest,
    Message,
    Probe,
    Problem,
    Prompt,
    Rollout,
    SamplingSpec,
    Verdict,
    VerdictKind,
)

if TYPE_CHECKING:
    from rlvr_lightning.types.batches import Row, StepBatch, TokenBatch
    from rlvr_lightning.types.tokens import MaskCount, Pass, PolicyView, StepPlan, TokenStats, TokenTerm, When

# Loaded on first use: they need torch, and the processes that judge responses start without it.
_HOMES = {
    **dict.fromkeys(("Row", "StepBatch", "TokenBatch"), "batches"),
    **dict.fromkeys(("MaskCount", "Pass", "PolicyView", "StepPlan", "TokenStats", "TokenTerm", "When"), "tokens"),
}

__all__ = [
    "VERDICT_KINDS",
    "Episode",
    "Generation",
    "GenerationRequest",
    "MaskCount",
    "Message",
    "Outcomes",
    "Pass",
    "PolicyView",
    "Probe",
    "Problem",
    "Prompt",
    "Rollout",
    "Row",
    "SamplingSpec",
    "StepBatch",
    "StepPlan",
    "TokenBatch",
    "TokenStats",
    "TokenTerm",
    "Verdict",
    "VerdictKind",
    "When",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlvr_lightning.types' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlvr_lightning.types.{_HOMES[name]}"), name)
