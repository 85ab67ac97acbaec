"""What is independent in an evaluation: problems, or clusters of them. Means and their standard errors.

Evan Miller, "Adding Error Bars to Evals" (arXiv 2411.00640): problems are a sample of those one could have asked, so the
error of a mean is over problems. A problem's responses are averaged first, which takes the noise of sampling along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """Independent units, of one problem or several each.

    Args:
        sums: of the problems' scores [units].
        sizes: problems in each [units].
    """

    sums: Floats
    sizes: Floats

    @classmethod
    def of(cls, scores: Sequence[float] | Floats, clusters: Sequence[str | None] | None = None) -> Units:
        """Problems as units, those of one cluster together.

        Args:
            scores: of each problem, at least one.
            clusters: name of each problem's; None for one on its own.
        """
        values = np.asarray(scores, dtype=np.float64)
        assert values.ndim == 1
        assert len(values)
        if clusters is None:
            return cls(values, np.ones(len(values)))
        names = [("alone", place) if name is None else ("cluster", name) for place, name in enumerate(clusters)]
        places = {name: unit for unit, name in enumerate(dict.fromkeys(names))}
        unit = np.asarray([places[name] for name in names])
        assert len(unit) == len(values)
        return cls(np.bincount(unit, values).astype(np.float64), np.bincount(unit).astype(np.float64))

    def __len__(self) -> int:
        return len(self.sums)

    @property
    def num_problems(self) -> int:
        """Over all units."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """Over problems."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def residuals(self) -> Floats:
        """What each unit adds to the error of the mean, as a sum over its problems [units]."""
        return self.sums - self.mean * self.sizes

    @property
    def standard_error(self) -> float:
        """Of the mean; nan of a single unit.

        Cluster-robust (Miller: covariances within clusters and none between): the squares of the clusters'
        summed residuals, times G / (G - 1) for G units, over the squared number of problems. Of problems on their own
        it is the sample's deviation over the root of their number.
        """
        count = len(self)
        if count < 2:
            return float("nan")
        squares = float((self.residuals**2).sum())
        return float(np.sqrt(squares * count / (count - 1)) / self.sizes.sum())
