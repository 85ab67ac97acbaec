"""The values that flow through a run, in pipeline order.

Dimension legend: P prompts, G responses a prompt (`group_size`), B rows, L tokens of a row (prompt and response), T = L - 1
tokens that another one scores, V vocabulary. Floats are float32 in training and float64 in the tests; probabilities are
natural logarithms (nats) wherever a name says `logprobs`.
"""

from rlvr_lightning.types.batches import Row, StepBatch, TokenBatch
from rlvr_lightning.types.outcomes import Outcomes
from rlvr_lightning.types.rollouts import (
    VERDICT_KINDS,
    Generation,
    GenerationRequest,
    Message,
    Problem,
    Prompt,
    Rollout,
    SamplingSpec,
    Verdict,
    VerdictKind,
)
from rlvr_lightning.types.tokens import MaskCount, Pass, PolicyView, StepPlan, TokenStats, TokenTerm, When

__all__ = [
    "VERDICT_KINDS",
    "Generation",
    "GenerationRequest",
    "MaskCount",
    "Message",
    "Outcomes",
    "Pass",
    "PolicyView",
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
