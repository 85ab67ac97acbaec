"""torchmetrics for accuracies and token statistics."""

from rlvr_lightning.metrics.at_k import AvgAtK, PassAtK, pass_at_k
from rlvr_lightning.metrics.token_means import TokenMeanMetric, TokenMeans

__all__ = ["AvgAtK", "PassAtK", "TokenMeanMetric", "TokenMeans", "pass_at_k"]
