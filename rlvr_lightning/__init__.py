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
    "EntropyQuantile": "partitioners.entropy_quantile",
    "SinglePart": "partitioners.single",
    "ClipKL": "constraints.clip_kl",
    "CappedRatio": "constraints.capped_ratio",
    "LpReg": "regularizers.lp_reg",
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
