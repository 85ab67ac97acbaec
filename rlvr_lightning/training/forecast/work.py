"""Tokens and operations, when every response is as long as it may be."""

from __future__ import annotations

from dataclasses import dataclass

from rlvr_lightning.training.forecast.setup import Setup


@dataclass(frozen=True)
class Work:
    """Of a rollout phase and its optimizer steps, over all ranks; at most.

    Args:
        step_tokens: prompt and response tokens an optimizer step learns from.
        phase_tokens: response tokens drawn in a phase.
        sampling, scoring: operations of a phase [FLOP].
        update: operations of an optimizer step [FLOP].
        steps: optimizer steps of a phase.
    """

    step_tokens: float
    phase_tokens: float
    sampling: float
    scoring: float
    update: float
    steps: int


def forward_flops(setup: Setup) -> float:
    """Of a token's forward pass: 2 N for the N weights it is multiplied with, and 4 q (L / 2) a layer for attention.

    L is the sequence's length; a token sees half of it on average (arXiv 2204.02311, appendix B, with a causal mask).
    """
    shape = setup.shape
    multiplied = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears.values()) + shape.table
    attention = 4 * shape.query_size * setup.rollout.length / 2 * shape.layers
    return 2.0 * multiplied + attention


def work(setup: Setup) -> Work:
    """Count it.

    The backward pass is twice the forward pass (once where only adapters are trained: no gradients of the weights), and
    what is computed again is one more forward pass of its layers.
    """
    rollout, forward = setup.rollout, forward_flops(setup)
    responses = rollout.prompts_per_epoch * rollout.group_size
    drawn = responses * rollout.generation_batches
    step_tokens = rollout.prompts_per_step * rollout.group_size * rollout.length
    backward = 2 if setup.adapter_rank is None else 1
    again = 1 / setup.recompute if setup.recompute else 0.0
    return Work(
        step_tokens=step_tokens,
        phase_tokens=drawn * rollout.response_tokens,
        sampling=forward * drawn * rollout.length,
        scoring=forward * responses * rollout.length * setup.kept_passes,
        update=forward * (1 + backward + again) * step_tokens,
        steps=rollout.steps,
    )
