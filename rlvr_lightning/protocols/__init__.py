"""The roles a run is made of: signatures and shapes only.

Each role is one constructor argument of `RLVRModule` or `RolloutDataModule`, one sub-package and one folder under
`conf/`. Components are pure: tensors in, tensors out; they never aggregate, read a config or know their run.
"""

from rlvr_lightning.protocols.objective import (
    Aggregator,
    Component,
    ConstraintPolicy,
    Correction,
    Regularizer,
    StepContext,
    TokenPartitioner,
    VocabStatistic,
)
from rlvr_lightning.protocols.rollouts import (
    AdvantageEstimator,
    RewardShaping,
    RolloutEngine,
    StreamingEngine,
    Task,
    Verifier,
)
from rlvr_lightning.protocols.run import ModelFolder, PolicyModel, RolloutData, TrainedModule

__all__ = [
    "AdvantageEstimator",
    "Aggregator",
    "Component",
    "ConstraintPolicy",
    "Correction",
    "ModelFolder",
    "PolicyModel",
    "Regularizer",
    "RewardShaping",
    "RolloutData",
    "RolloutEngine",
    "StepContext",
    "StreamingEngine",
    "Task",
    "TokenPartitioner",
    "TrainedModule",
    "Verifier",
    "VocabStatistic",
]
