"""Where a setting's range ends: the edge itself, and what lies beyond."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

import rlvr_lightning
from rlvr_lightning.config.build import build_data
from rlvr_lightning.config.components import component, model_source
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.training.optim import OptimSettings

TINY, INF, NAN = 1e-9, math.inf, math.nan
SHARE = ((TINY, 1 - TINY), (0, 1, -0.5, 1.5, NAN))  # inside, outside
WEIGHT = ((0, 7.5), (-TINY, -0.5))
LOW = ((0, 0.5, 1), (-TINY, -0.5, 1 + TINY, 1.5, NAN))
HIGH = ((0, 3, INF), (-TINY, -0.5, NAN))
ABOVE_0 = ((TINY, 0.5, 9), (0, -0.5))
ABOVE_1 = ((1 + TINY, 1.5, 9), (1, 0.5, 0))
WORDS = {"variant": ("paper", "reference"), "scope": ("response", "batch"), "when": ("rollout", "update")}
WORDS |= {"divergence": ("tv", "kl")}
WORDS |= {"threshold_kind": ("relative", "absolute"), "kl_estimator": ("k1", "k2", "k3", "abs")}
PATH = {"drives": "constraint.clip_high"}
Range = tuple[tuple[Any, ...], tuple[Any, ...]]
# By class: what it needs besides, then each setting's values inside and outside its range.
RANGES: dict[str, tuple[dict[str, Any], dict[str, Range]]] = {
    "EntropyQuantile": ({}, {"quantile": SHARE}),
    "TopEntropy": ({}, {"share": SHARE}),
    "RandomShare": ({}, {"share": SHARE}),
    "ClipKL": (
        {},
        {"clip_low": LOW, "clip_high": HIGH, "kl_coef": WEIGHT, "dual_clip": ((None, *ABOVE_1[0]), ABOVE_1[1])},
    ),
    "CappedRatio": ({}, {"max_ratio": ABOVE_1}),
    "GSPO": ({}, {"clip_low": LOW, "clip_high": HIGH}),
    "GMPO": ({}, {"clip_low": HIGH, "clip_high": HIGH}),
    "CISPO": ({}, {"clip_low": LOW, "clip_high": HIGH}),
    "SAPO": ({}, {"tau_pos": ABOVE_0, "tau_neg": ABOVE_0}),
    "ASPO": ({}, {"clip_low": LOW, "clip_high": HIGH, "dual_clip": ABOVE_1}),
    "CEGPPO": ({}, {"clip_low": LOW, "clip_high": HIGH, "beta_low": HIGH, "beta_high": HIGH}),
    "ClipCov": (
        {},
        {
            "share": SHARE,
            "lowest": ((4.9, -9), (5, 5.1)),
            "highest": ((1.1, 9), (1, 0.9)),
            "clip_low": LOW,
            "clip_high": HIGH,
        },
    ),
    "FlexibleClip": (
        {},
        {
            "alpha_low": ((0, -0.3), (-1, -1.5, TINY, 0.5, -0.31)),
            "beta_low": ((0.2, 1), (0.199, 1 + TINY, 1.5, -0.5)),
            "alpha_high": ((0, -0.4), (TINY, 0.5, -0.41)),
            "beta_high": ((0.3, 9), (0.299, -0.3)),
        },
    ),
    "OPEFO": ({}, {"strength": ((0, 0.5, 1), (-TINY, -0.5, 1 + TINY, 1.5))}),
    "DPPO": ({}, {"delta_low": HIGH, "delta_high": HIGH, "max_ratio": ((*ABOVE_1[0], INF), (*ABOVE_1[1], NAN))}),
    "BAPO": (
        {},
        {
            "target": SHARE,
            "lower": ((0, 0.9), (-TINY, 0.91, NAN)),
            "lower_limit": ((0.6, 1), (0.59, 1 + TINY, NAN)),
            "upper": ((1, 3.0), (1 - TINY, 3.1, NAN)),
            "upper_limit": ((1.2, 9), (1.19, INF, NAN)),
            "upper_step": ABOVE_0,
            "dual_clip": ((None, *ABOVE_1[0]), ABOVE_1[1]),
        },
    ),
    "STARE": (
        {},
        {
            "share": SHARE,
            "weight_pos": ((1, 1.5, 9), (1 - TINY, 0.5, INF, NAN)),
            "weight_neg": LOW,
            "target": ((TINY, 9, INF), (0, -0.5, NAN)),
        },
    ),
    "STEER": ({}, {"least": SHARE, "floor": (ABOVE_0[0], (*ABOVE_0[1], INF, NAN))}),
    "ClipB": ({}, {"deviations": (ABOVE_0[0], (*ABOVE_0[1], NAN))}),
    "ClipV": ({}, {"deviations": (ABOVE_0[0], (*ABOVE_0[1], NAN)), "max_share": SHARE}),
    "RepoR": ({}, {"zeta": ((0, -0.5, 9), (INF, -INF, NAN))}),
    "ERC": (
        {},
        {"clip_low": ((TINY, 0.5, 1), (0, -0.5, 1 + TINY, NAN)), "clip_high": ((TINY, 9, INF), (0, -0.5, NAN))},
    ),
    "EntropyBonus": ({}, {"coef": WEIGHT}),
    "KLCov": ({}, {"share": SHARE, "coef": WEIGHT}),
    "LpReg": (
        {},
        {"quantile": SHARE, "threshold": SHARE, "coef": WEIGHT, "support": ((1, 2), (0, -1)), "temperature": ABOVE_0},
    ),
    "TIS": ({}, {"most": ((1, 1.5, 9), (1 - TINY, 0.5, NAN))}),
    "MIS": ({}, {"least": ((TINY, 0.5, 1), (0, -0.5, 1 + TINY)), "most": ((1, 9), (1 - TINY, 0.5, 0))}),
    "SequenceMeanTokenSum": ({}, {"length": ABOVE_0}),
    "GroupRelative": ({}, {"epsilon": ABOVE_0}),
    "OverlongPenalty": (
        {"buffer": 5, "max_length": 20},
        {"buffer": ((1, 20), (0, -1, 21)), "max_length": ((5, 6), (4, 0)), "weight": ABOVE_0},
    ),
    "Target": (
        PATH,
        {
            "target": WEIGHT,
            "kp": WEIGHT,
            "ki": WEIGHT,
            "direction": ((1, -1), (0, 2, -2, 0.5)),
            "initial": ((None, 0, 1, 0.5), (-TINY, 1 + TINY)),
            "least": ((0.9, -9), (1, 1.5, -INF, NAN)),
            "most": ((TINY, 9), (0, -0.5, INF, NAN)),
            "drives": (("a.b",), ("ab", 5, None)),
        },
    ),
    "Band": (PATH, {"low": ((0, 0.3), (-TINY, -0.5, 0.31)), "high": ((0.1, 9), (0.09, -1)), "step": ABOVE_0}),
    "Stepwise": ({}, {"target": WEIGHT, "step": ABOVE_0}),
    "IncreaseThenDecrease": ({}, {"peak": SHARE}),
    "DecreaseIncreaseDecrease": (
        {},
        {"trough": ((TINY, 0.59), (0, -0.5, 0.6, 0.7)), "peak": ((0.31, 1 - TINY), (0.3, 1, 1.5))},
    ),
    "HalvingDoubling": (
        {},
        {"target": ((None, 0, 7.5), (-TINY, -0.5, NAN)), "smallest": ((TINY, 0.05), (0, -0.5, 0.051))},
    ),
    "OscillatingDecay": ({}, {"low_share": ((0, 0.5, 1), (-TINY, -0.5, 1 + TINY, 1.5))}),
    "MathVerifier": ({}, {"timeout_s": ABOVE_0, "extract": (("auto", "boxed", "bracket"), ("box", ""))}),
    "ExactVerifier": ({}, {"pattern": (("(x)",), ("x", "(", "[(a)"))}),
    "TransformersEngine": ({}, {"batch_size": ((1, 2), (0, -1))}),
}


def build(name: str, **settings: Any) -> Any:
    return getattr(rlvr_lightning, name)(**settings)


@pytest.mark.parametrize("name", RANGES)
def test_a_setting_is_taken_up_to_its_edge_and_no_further(name: str) -> None:
    needed, ranges = RANGES[name]
    for setting, (inside, outside) in ranges.items():
        for value in inside:
            assert getattr(build(name, **{**needed, setting: value}), setting, value) == value
        for value in outside:
            with pytest.raises(ConfigError):
                build(name, **{**needed, setting: value})


def test_words_that_are_not_known_are_refused() -> None:
    tried = 0
    for name in RANGES:
        for word, known in WORDS.items():
            if word in inspect.signature(getattr(rlvr_lightning, name)).parameters:
                tried += 1
                assert [getattr(build(name, **{word: value}), word) for value in known] == [*known]
                with pytest.raises(ConfigError, match=f"{name}.{word} must be .*; got 'other'"):
                    build(name, **{word: "other"})
    assert tried == 11


def test_the_optimizers_settings_are_taken_up_to_their_edges() -> None:
    inside: dict[str, tuple[Any, ...]] = {"lr": (0, 9), "weight_decay": (0, 9), "warmup_steps": (0, 9)}
    inside |= {"grad_clip": (None, TINY, 9), "betas": ((0, 0), (1 - TINY, 1 - TINY))}
    outside: dict[str, tuple[Any, ...]] = dict.fromkeys(("lr", "weight_decay", "warmup_steps"), (-TINY, -0.5, NAN))
    outside |= {
        "grad_clip": (0, -0.5, NAN),
        "betas": ((1, 0.9), (0.9, 1), (-TINY, 0.9), (0.9,), (0.9, 0.9, 0.9), (1.5, 0)),
    }
    for name, values in inside.items():
        for value in values:
            assert getattr(OptimSettings(**{name: value}), name) == value
    for name, values in outside.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"optim.{name} must be"):
                OptimSettings(**{name: value})


ROLLOUT: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "group_size": ((2, 3), (1, 0, -1)),
    "prompts_per_epoch": ((1, 5), (0, -1)),
    "prompts_per_step": ((None, 1, 16, 32), (0, -1, 3, 33, 64)),
    "passes": ((1, 2), (0, -1)),
    "temperature": (ABOVE_0[0], ABOVE_0[1]),
    "top_p": ((1, 1.0), (0.9, 1.1, 0)),
    "max_new_tokens": ((1, 2), (0, -1)),
    "max_prompt_tokens": ((1, 2), (0, -1)),
    "overlong_prompts": (("skip", "error"), ("keep", "")),
    "generation_batches": ((1,), (0, -1, 2)),
    "eval_samples": ((1, 2), (0, -1)),
}


@pytest.mark.parametrize("name", ROLLOUT)
def test_settings_of_a_rollout_phase_are_taken_up_to_their_edges(name: str) -> None:
    def built(value: Any) -> Any:
        cfg = compose(["engine=transformers"])
        cfg.rollout[name] = value
        return build_data(cfg, model_source(cfg), component(cfg, "engine"))

    inside, outside = ROLLOUT[name]
    for value in inside:
        assert built(value) is not None
    for value in outside:
        with pytest.raises(ConfigError, match=f"rollout.{name}"):
            built(value)
