"""The gradient of the output layer, formed while its logits are there, from what the loss's gradient will be.

A loss is made of few numbers a token. With a chunk's numbers known and those of later chunks not yet, what the loss will be
is foreseen: exactly where each token counts for itself and the plan is known, nearly where a choice of few tokens depends on all of
them. Going back it is compared with what the loss was, and the difference is made up for, token by token: the result is that of
a pass that foresees nothing, and the output layer is multiplied three times and not four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# From a chunk's place among the tokens, and all tokens' results so far, to the loss's gradient with respect to each result there;
# None where it does not depend on it.
Foresee = Callable[[slice, Sequence[Tensor]], Sequence[Tensor | None]]
# Of a gradient, in units of its dtype's rounding: what the order of operations makes of the same numbers.
ROUNDED = 8


@dataclass(frozen=True)
class HeadGradients:
    """Of a loss with respect to hidden states, weight and bias of the output layer; None where nobody wants it."""

    hidden: Float[Tensor, "N H"] | None
    weight: Float[Tensor, "V H"] | None
    bias: Float[Tensor, " V"] | None

    @classmethod
    def zeros(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]) -> HeadGradients:
        """Of those that are needed."""
        each = zip((hidden, weight, bias), needed, strict=True)
        return cls(*(torch.zeros_like(of) if need and of is not None else None for of, need in each))

    def add(self, at: slice, grad: Float[Tensor, "n V"], hidden: Float[Tensor, "n H"], weight: Tensor) -> None:
        """What follows from the gradient of some tokens' logits."""
        if self.hidden is not None:
            self.hidden[at] = grad @ weight
        if self.weight is not None and self.weight.dtype == grad.dtype:
            self.weight.addmm_(grad.t(), hidden)
        elif self.weight is not None:
            self.weight.add_(grad.t() @ hidden)
        if self.bias is not None:
            self.bias.add_(grad.sum(0))

    def of(self, rows: Int[Tensor, " R"]) -> HeadGradients:
        """For some tokens alone; weight and bias are shared."""
        hidden = None if self.hidden is None else self.hidden.new_zeros(len(rows), self.hidden.shape[1])
        return HeadGradients(hidden, self.weight, self.bias)

    def mend(self, rows: Int[Tensor, " R"], part: HeadGradients) -> None:
        """Add what was missing of some tokens."""
        if self.hidden is not None and part.hidden is not None:
            self.hidden.index_add_(0, rows, part.hidden)


class Foreseen:
    """What was foreseen, and the gradients that follow from it.

    Args:
        foresee: see `Foresee`.
        hidden: of all tokens.
        weight, bias: of the output layer.
        needed: which of the three have a gradient.
    """

    def __init__(
        self, foresee: Foresee, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]
    ) -> None:
        self._foresee, self._expected = foresee, list[Tensor | None]()
        self.gradients = HeadGradients.zeros(hidden, weight, bias, needed)

    def look(self, at: slice, columns: Sequence[Shaped[Tensor, "N ..."]]) -> list[Float[Tensor, " N"] | None]:
        """Foresee a chunk: the gradient with respect to each result, of all tokens so far."""
        self._expected = self._expected or [None] * len(columns)
        for place, (column, grad) in enumerate(zip(columns, self._foresee(at, columns), strict=True)):
            if grad is None:
                continue
            expected = self._expected[place]
            if expected is None:
                self._expected[place] = expected = torch.zeros_like(column)
            # A guess that is no number would spoil what it is added to.
            expected[at] = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        return self._expected

    def amiss(self, grads: Sequence[Float[Tensor, " N"] | None]) -> tuple[Int[Tensor, " R"], list[Tensor | None]]:
        """Tokens of which it was foreseen wrongly, and what was missing."""
        known = next(one for one in (*self._expected, *grads) if one is not None)
        wrong = torch.zeros(len(known), dtype=torch.bool, device=known.device)
        missing: list[Tensor | None] = []
        for expected, grad in zip(self._expected, grads, strict=True):
            if expected is None and grad is None:
                missing.append(None)
                continue
            was = torch.zeros_like(known) if expected is None else expected
            found = torch.zeros_like(known) if grad is None else grad
            gap, largest = found - was, was.abs().maximum(found.abs())
            # What is no number is wrong as well.
            wrong |= ~(gap.abs() <= ROUNDED * torch.finfo(gap.dtype).eps * largest)
            missing.append(gap)
        (rows,) = wrong.nonzero(as_tuple=True)
        return rows, [None if gap is None else gap[rows] for gap in missing]
