"""Do the components of an objective make sense together? Asked once, when a run is built."""

from __future__ import annotations

from collections.abc import Mapping

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import (
    ConstraintPolicy,
    Correction,
    LevelledCorrection,
    Regularizer,
    TokenPartitioner,
    Weighting,
)


def check_composition(
    partitioner: TokenPartitioner,
    constraint: ConstraintPolicy,
    regularizers: Mapping[str, Regularizer],
    correction: Correction | None,
    weightings: Mapping[str, Weighting],
) -> None:
    """Refuse what cannot be meant. Per-part settings are the constraint's own affair (`bind`).

    Raises:
        ConfigError: what does not fit what, and why.
    """
    parts = partitioner.parts
    if len(set(parts)) != len(parts) or not parts or "response" in parts:
        raise ConfigError(f"partitioner parts must be distinct names other than `response`; got {parts}")
    clash = {"response", "constraint", "surrogate", "kl", *parts} & set(regularizers)
    if clash:
        raise ConfigError(f"regularizer.{min(clash)}: the name is taken by a part or a term; give it another")
    kind = type(constraint).__name__
    if correction is not None and constraint.starts_at_engine:
        raise ConfigError(
            f"correction {type(correction).__name__} weighs the gap between engine and trainer, which {kind}'s ratio to the "
            "engine's policy spans already: choose correction=none"
        )
    if not constraint.per_response:
        return
    if weightings:
        raise ConfigError(
            f"weighting.{min(weightings)} weighs single tokens, but {kind} has one ratio for a whole response: choose a constraint "
            "with a ratio for each token"
        )
    for name, regularizer in regularizers.items():
        if regularizer.replaces_surrogate:
            raise ConfigError(
                f"regularizer.{name} takes single tokens out of the surrogate, but {kind} has one ratio for a whole "
                "response: choose a constraint with a ratio for each token"
            )
    if correction is not None and not (isinstance(correction, LevelledCorrection) and correction.per_response):
        raise ConfigError(
            f"correction {type(correction).__name__} weighs single tokens, but {kind} has one ratio for a whole "
            "response: choose correction.level=sequence or geometric, correction=none, or a constraint with a ratio for each token"
        )
