"""torchmetrics for accuracies and token statistics."""
