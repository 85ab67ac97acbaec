"""avg@k and pass@k: accuracy of one response, and the chance that one of k is right."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from rlvr_lightning.errors import ConfigError


def pass_at_k(num_correct: Int[Tensor, " P"], num_samples: int, k: int) -> Float[Tensor, " P"]:
    """Unbiased chance that one of k samples is right (arXiv 2107.03374): 1 - C(n-c, k) / C(n, k).

    Args:
        num_correct: c of each problem.
        num_samples: n, at least k.
        k: samples one may submit.
    """
    wrong = (num_samples - num_correct).to(torch.float64).unsqueeze(-1)
    # C(n-c, k) / C(n, k) as a product of k ratios, none of which can overflow.
    draws = torch.arange(k, dtype=torch.float64, device=num_correct.device)
    return 1 - ((wrong - draws) / (num_samples - draws)).clamp(min=0).prod(-1)


class AvgAtK(Metric):
    """Mean accuracy over k responses to each problem (probability).

    Args:
        k: responses to each problem.

    Example:
        >>> metric = AvgAtK(k=2)
        >>> metric.update(torch.tensor([[True, False], [True, True]]))
        >>> float(metric.compute())
        0.75
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    problems: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"{type(self).__name__}.k must be at least 1; got {k}")
        self.k = k
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("problems", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def _score(self, correct: Bool[Tensor, "P n"]) -> Float[Tensor, " P"]:
        return correct.double().mean(-1)

    def update(self, correct: Bool[Tensor, "P n"]) -> None:
        """Add problems with n >= k graded responses each.

        Raises:
            ValueError: fewer than k responses.
        """
        if correct.shape[-1] < self.k:
            raise ValueError(f"{type(self).__name__}(k={self.k}) needs {self.k} responses; got {correct.shape[-1]}")
        self.total += self._score(correct).sum()
        self.problems += correct.shape[0]

    def compute(self) -> Tensor:
        """The mean over problems; nan without any."""
        return self.total / self.problems


class PassAtK(AvgAtK):
    """Mean chance that at least one of k responses is right, by the unbiased estimator (probability).

    Args:
        k: responses one may submit; each problem needs n >= k graded responses.

    Example:
        >>> metric = PassAtK(k=1)
        >>> metric.update(torch.tensor([[True, False, False, False]]))
        >>> float(metric.compute())
        0.25
    """

    def _score(self, correct: Bool[Tensor, "P n"]) -> Float[Tensor, " P"]:
        return pass_at_k(correct.sum(-1), correct.shape[-1], self.k)
