"""How sure a number is: errors over problems, intervals, paired differences."""

from rlvr_lightning.evaluation.statistics.accuracy import accuracies, compared
from rlvr_lightning.evaluation.statistics.compare import compare_files
from rlvr_lightning.evaluation.statistics.intervals import Interval, interval
from rlvr_lightning.evaluation.statistics.paired import detectable, p_value, paired_difference
from rlvr_lightning.evaluation.statistics.results import (
    Difference,
    Estimate,
    Result,
    as_json,
    as_markdown,
    as_table,
    rows_markdown,
    rows_table,
)
from rlvr_lightning.evaluation.statistics.units import Units

__all__ = [
    "Difference",
    "Estimate",
    "Interval",
    "Result",
    "Units",
    "accuracies",
    "as_json",
    "as_markdown",
    "as_table",
    "compare_files",
    "compared",
    "detectable",
    "interval",
    "p_value",
    "paired_difference",
    "rows_markdown",
    "rows_table",
]
