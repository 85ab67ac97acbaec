"""Another value for each setting of the objective's components, and the run in which it matters."""

from __future__ import annotations

from typing import Any

from changing import Table

CLIP: dict[str, Any] = {"clip_low": 0.05, "clip_high": 0.07, "dual_clip": 1.05, "kl_coef": 0.3, "kl_estimator": "k1"}
PARTS = ("partitioner=entropy_quantile",)
# A pull to the reference in one part alone, so that its estimator and the set it is averaged over matter.
PULLED = (*PARTS, "constraint.kl_coef={knowledge: 0.2, reasoning: 0.0}")
# Above the entropy of the step.
OPEN = ("weighting.stare.target=9.0",)
# Bounds that the ratios of the case reach.
BOUNDS = ("constraint.lower=0.7", "constraint.upper=1.05", "constraint.upper_limit=1.5")
OBJECTIVES: Table = {
    "partitioner/single": ((), {}),
    "partitioner/random_share": (("constraint.clip_high={knowledge: 0.05, reasoning: 0.4}",), {"share": 0.5}),
    "partitioner/top_entropy": (
        ("constraint.clip_high={knowledge: 0.05, reasoning: 0.4}",),
        {"share": 0.5, "when": "rollout"},
    ),
    "partitioner/entropy_quantile": (
        ("constraint.clip_high={knowledge: 0.05, reasoning: 0.4}",),
        {"quantile": 0.4, "scope": "batch", "variant": "reference"},
    ),
    "constraint/clip_kl": (PULLED, {**CLIP, "variant": "reference"}),
    "constraint/clip_higher": (PULLED, {**CLIP, "variant": "reference"}),
    "constraint/unclipped": (PULLED, {**CLIP, "variant": "reference"}),
    "constraint/archer": (
        PARTS,
        {
            "clip_low": {"knowledge": 0.2, "reasoning": 0.05},
            "clip_high": {"knowledge": 0.05, "reasoning": 0.5},
            "dual_clip": 1.05,
            "kl_coef": {"knowledge": 0.5, "reasoning": 0.0},
            "kl_estimator": "k2",
            "variant": "reference",
        },
    ),
    "constraint/eighty_twenty": (
        ("partitioner=top_entropy", "constraint.constraint.kl_coef={knowledge: 0.2, reasoning: 0.0}"),
        {
            "part": "knowledge",
            **{f"constraint.{name}": value for name, value in CLIP.items()},
            "constraint.variant": "reference",
        },
    ),
    "constraint/capped_ratio": (("constraint.max_ratio=1.1",), {"max_ratio": 1.3, "variant": "reference"}),
    "constraint/gspo": ((), {"clip_low": 0.05, "clip_high": 0.05}),
    "constraint/gmpo": ((), {"clip_low": 0.05, "clip_high": 0.05}),
    "constraint/cispo": ((), {"clip_low": 0.05, "clip_high": 0.05}),
    "constraint/sapo": ((), {"tau_pos": 2.0, "tau_neg": 2.0}),
    "constraint/clip_cov": (
        ("constraint.share=0.1", "constraint.lowest=0.3"),
        {"share": 0.3, "lowest": 0.6, "highest": 0.9, "clip_low": 0.05, "clip_high": 0.05},
    ),
    "constraint/aspo": ((), {"clip_low": 0.05, "clip_high": 0.05, "dual_clip": 1.05}),
    "constraint/ce_gppo": ((), {"clip_low": 0.05, "clip_high": 0.05, "beta_low": 0.1, "beta_high": 0.1}),
    "constraint/opefo": ((), {"strength": 0.5}),
    "constraint/flexible_clip": (
        (),
        {"alpha_low": -0.05, "beta_low": 0.21, "alpha_high": -0.05, "beta_high": 0.31},
    ),
    "constraint/dppo": (
        ("constraint.delta_low=0.02", "constraint.delta_high=0.02"),
        {"divergence": "kl", "delta_low": 0.1, "delta_high": 0.1, "max_ratio": 1.1},
    ),
    "constraint/bapo": (
        (*BOUNDS, "constraint.target=0.2335"),
        {
            "target": 0.1,
            "lower": 0.8,
            "upper": 1.01,
            "upper_limit": 1.1,
            "upper_step": 0.12,
            "dual_clip": 1.05,
            "variant": "reference",
        },
    ),
    "weighting/stare": (OPEN, {"share": 0.3, "weight_pos": 1.3, "weight_neg": 0.9, "target": 0.3}),
    "weighting/steer": ((), {"least": 0.5, "floor": 200.0}),
    "weighting/clip_b": (("weighting.clip_b.deviations=0.5",), {"deviations": 1.0}),
    "weighting/clip_v": (
        ("weighting.clip_v.deviations=0.5", "weighting.clip_v.max_share=0.3"),
        {"deviations": 1.5, "max_share": 0.02},
    ),
    "weighting/repo_r": ((), {"zeta": 0.01}),
    "weighting/erc": ((), {"clip_low": 0.2, "clip_high": 0.2}),
    "regularizer/none": ((), {}),
    "regularizer/entropy_bonus": ((), {"coef": 0.5}),
    "regularizer/kl_cov": ((), {"share": 0.3, "coef": 0.5}),
    "regularizer/spark_shield": (
        ("regularizer.spark_shield.quantile=0.6", "regularizer.spark_shield.penalty=full"),
        {
            "quantile": 0.3,
            "threshold": 0.3,
            "source": "current",
            "penalty": "k3",
            "ceiling": 0.005,
            "coef": 0.5,
            "support": 2,
        },
    ),
    "regularizer/only_places": (
        ("regularizer.only_places.regularizer.quantile=0.95", "regularizer.only_places.regularizer.threshold=0.1"),
        {
            "where": "rest",
            "tokens": 2,
            "regularizer.quantile": 0.3,
            "regularizer.threshold": 0.6,
            "regularizer.threshold_kind": "absolute",
            "regularizer.coef": 0.5,
            "regularizer.variant": "reference",
            "regularizer.support": 2,
        },
    ),
    "regularizer/lp_reg": (
        ("regularizer.lp_reg.quantile=0.6",),
        {
            "quantile": 0.3,
            "threshold": 0.3,
            "threshold_kind": "absolute",
            "coef": 0.5,
            "variant": "reference",
            "support": 2,
        },
    ),
    "correction/none": ((), {}),
    "correction/tis": ((), {"most": 1.1, "level": "sequence"}),
    "correction/mis": ((), {"least": 0.9, "most": 1.1, "level": "geometric"}),
    "aggregator/token_mean": ((), {}),
    "aggregator/sequence_mean_token_mean": ((), {}),
    "aggregator/sequence_mean_token_sum": ((), {"length": 7.0}),
}
# The same regularizer in its other form.
LP_REG_REFERENCE = (
    "regularizer=[lp_reg]",
    "regularizer.lp_reg={quantile: 0.6, threshold: 0.1, variant: reference}",
)


# The bounds of BAPO where no upper one suffices.
EXHAUSTED = ("constraint=bapo", *BOUNDS, "constraint.target=0.5")
