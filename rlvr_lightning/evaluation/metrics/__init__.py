"""torchmetrics for accuracies and token statistics."""

from rlvr_lightning.evaluation.metrics.at_k import AvgAtK, PassAtK, pass_at_k
from rlvr_lightning.evaluation.metrics.histogram import ProbabilityHistogram
from rlvr_lightning.evaluation.metrics.quadrants import QuadrantTable
from rlvr_lightning.evaluation.metrics.ratio_quantiles import RatioQuantiles
from rlvr_lightning.evaluation.metrics.token_counts import TokenCounts
from rlvr_lightning.evaluation.metrics.token_means import TokenMeanMetric, TokenMeans

__all__ = [
    "AvgAtK",
    "PassAtK",
    "ProbabilityHistogram",
    "QuadrantTable",
    "RatioQuantiles",
    "TokenCounts",
    "TokenMeanMetric",
    "TokenMeans",
    "pass_at_k",
]
