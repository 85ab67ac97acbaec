"""Reinforcement learning with verifiable rewards for language models, on PyTorch Lightning.

Public names are loaded on first use, so that importing the package costs next to nothing and never imports vLLM.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "errors",
    "RLVRError": "errors",
    "Problem": "types",
    "Prompt": "types",
    "Rollout": "types",
    "SamplingSpec": "types",
    "TokenBatch": "types",
    "TokenStats": "types",
    "TokenTerm": "types",
    "Verdict": "types",
    "Arithmetic": "tasks.arithmetic",
    "HuggingFaceTask": "tasks.huggingface",
    "JsonlTask": "tasks.jsonl",
    "ExactVerifier": "verifiers.exact",
    "MathVerifier": "verifiers.math",
    "GroupRelative": "advantages.group_relative",
    "RLOO": "advantages.rloo",
    "OverlongPenalty": "shaping.overlong",
    "EntropyQuantile": "partitioners.entropy_quantile",
    "RandomShare": "partitioners.random_share",
    "SinglePart": "partitioners.single",
    "TopEntropy": "partitioners.top_entropy",
    "ASPO": "constraints.aspo",
    "CEGPPO": "constraints.ce_gppo",
    "CISPO": "constraints.cispo",
    "CappedRatio": "constraints.capped_ratio",
    "ClipCov": "constraints.clip_cov",
    "ClipKL": "constraints.clip_kl",
    "FlexibleClip": "constraints.flexible_clip",
    "GMPO": "constraints.gmpo",
    "GSPO": "constraints.gspo",
    "OPEFO": "constraints.opefo",
    "OnlyPart": "constraints.only_part",
    "SAPO": "constraints.sapo",
    "EntropyBonus": "regularizers.entropy_bonus",
    "KLCov": "regularizers.kl_cov",
    "LpReg": "regularizers.lp_reg",
    "MIS": "corrections.mis",
    "TIS": "corrections.tis",
    "Band": "controllers.band",
    "DecreaseIncreaseDecrease": "controllers.decrease_increase_decrease",
    "IncreaseThenDecrease": "controllers.increase_then_decrease",
    "OscillatingDecay": "controllers.oscillating_decay",
    "Stepwise": "controllers.stepwise",
    "Target": "controllers.target",
    "TokenMean": "aggregators",
    "SequenceMeanTokenMean": "aggregators",
    "SequenceMeanTokenSum": "aggregators",
    "AvgAtK": "metrics",
    "PassAtK": "metrics",
    "TokenMeanMetric": "metrics",
    "Objective": "objective",
    "ModelSource": "models",
    "OptimSettings": "optim",
    "Step": "step",
    "TokenPartitioner": "protocols",
    "ConstraintPolicy": "protocols",
    "Controller": "controllers.protocol",
    "Correction": "protocols",
    "Aggregator": "protocols",
    "AdvantageEstimator": "protocols",
    "Regularizer": "protocols",
    "VocabStatistic": "protocols",
    "Policy": "policy",
    "RLVRModule": "module",
    "RolloutDataModule": "datamodule",
    "TransformersEngine": "rollout.transformers_engine",
    "VLLMEngine": "rollout.vllm_engine",
    "build_run": "run",
    "compose": "config",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlvr_lightning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlvr_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
