"""The roles a run is made of: signatures and shapes only.

Each role is one constructor argument of `RLVRModule` or `RolloutDataModule`, one sub-package and one folder under
`conf/`. Components are pure: tensors in, tensors out; they never aggregate, read a config or know their run.
"""

from rlvr_lightning.protocols.engines import (
    AdapterEngine,
    ApartEngine,
    Draws,
    RecordedEngine,
    RestingEngine,
    RolloutEngine,
    StreamingEngine,
    SummedEngine,
    TypedEngine,
)
from rlvr_lightning.protocols.objective import (
    Aggregator,
    Component,
    ConstraintPolicy,
    Correction,
    LevelledCorrection,
    Regularizer,
    StepContext,
    TokenPartitioner,
    VocabStatistic,
    Weighting,
)
from rlvr_lightning.protocols.rollouts import (
    AdvantageEstimator,
    RewardShaping,
    Task,
    Verifier,
)
from rlvr_lightning.protocols.run import Adapters, ModelFolder, PolicyModel, RolloutData, TrainedModule

__all__ = [
    "AdapterEngine",
    "Adapters",
    "AdvantageEstimator",
    "Aggregator",
    "ApartEngine",
    "Component",
    "ConstraintPolicy",
    "Correction",
    "Draws",
    "LevelledCorrection",
    "ModelFolder",
    "PolicyModel",
    "RecordedEngine",
    "Regularizer",
    "RestingEngine",
    "RewardShaping",
    "RolloutData",
    "RolloutEngine",
    "StepContext",
    "StreamingEngine",
    "SummedEngine",
    "Task",
    "TokenPartitioner",
    "TrainedModule",
    "TypedEngine",
    "Verifier",
    "VocabStatistic",
    "Weighting",
]
