"""Reinforcement learning with verifiable rewards for language models, on PyTorch Lightning.

Public names are loaded on first use, so that importing the package costs next to nothing and never imports vLLM.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "errors",
    "RLVRError": "errors",
    "Episode": "types",
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
    "Benchmark": "evaluation.benchmarks.benchmark",
    "Hub": "evaluation.benchmarks.benchmark",
    "Window": "evaluation.benchmarks.benchmark",
    "Published": "evaluation.benchmarks.published",
    "ChoiceVerifier": "verifiers.choice",
    "CompositeVerifier": "verifiers.composite",
    "ExactVerifier": "verifiers.exact",
    "FormatVerifier": "verifiers.format",
    "FunctionVerifier": "verifiers.function",
    "CodeVerifier": "verifiers.code.verifier",
    "Limits": "verifiers.sandbox.limits",
    "MathVerifier": "verifiers.math",
    "RemoteVerifier": "verifiers.remote",
    "Grading": "verifiers.grading",
    "VerifierPool": "verifiers.pool",
    "GroupRelative": "methods.advantages.group_relative",
    "RLOO": "methods.advantages.rloo",
    "OverlongPenalty": "methods.shaping.overlong",
    "EntropyQuantile": "methods.partitioners.entropy_quantile",
    "RandomShare": "methods.partitioners.random_share",
    "SinglePart": "methods.partitioners.single",
    "TopEntropy": "methods.partitioners.top_entropy",
    "ASPO": "methods.constraints.aspo",
    "BAPO": "methods.constraints.bapo",
    "CEGPPO": "methods.constraints.ce_gppo",
    "CISPO": "methods.constraints.cispo",
    "CappedRatio": "methods.constraints.capped_ratio",
    "ClipCov": "methods.constraints.clip_cov",
    "ClipKL": "methods.constraints.clip_kl",
    "DPPO": "methods.constraints.dppo",
    "FlexibleClip": "methods.constraints.flexible_clip",
    "GMPO": "methods.constraints.gmpo",
    "GSPO": "methods.constraints.gspo",
    "OPEFO": "methods.constraints.opefo",
    "OnlyPart": "methods.constraints.only_part",
    "SAPO": "methods.constraints.sapo",
    "EntropyBonus": "methods.regularizers.entropy_bonus",
    "KLCov": "methods.regularizers.kl_cov",
    "LpReg": "methods.regularizers.lp_reg",
    "ClipB": "methods.weightings.entropy_clip",
    "ClipV": "methods.weightings.entropy_clip",
    "RepoR": "methods.weightings.repo_r",
    "STARE": "methods.weightings.stare",
    "STEER": "methods.weightings.steer",
    "MIS": "methods.corrections.mis",
    "TIS": "methods.corrections.tis",
    "Band": "methods.controllers.band",
    "DecreaseIncreaseDecrease": "methods.controllers.decrease_increase_decrease",
    "HalvingDoubling": "methods.controllers.halving_doubling",
    "IncreaseThenDecrease": "methods.controllers.increase_then_decrease",
    "OscillatingDecay": "methods.controllers.oscillating_decay",
    "Stepwise": "methods.controllers.stepwise",
    "Target": "methods.controllers.target",
    "TokenMean": "methods.aggregators",
    "SequenceMeanTokenMean": "methods.aggregators",
    "SequenceMeanTokenSum": "methods.aggregators",
    "AvgAtK": "evaluation.metrics",
    "PassAtK": "evaluation.metrics",
    "TokenMeanMetric": "evaluation.metrics",
    "Objective": "objective.objective",
    "ModelSource": "models.source",
    "OptimSettings": "training.optim",
    "Step": "objective.step",
    "TokenPartitioner": "protocols",
    "ConstraintPolicy": "protocols",
    "Controller": "methods.controllers.protocol",
    "Correction": "protocols",
    "Aggregator": "protocols",
    "AdvantageEstimator": "protocols",
    "Regularizer": "protocols",
    "VocabStatistic": "protocols",
    "Weighting": "protocols",
    "Policy": "models.policy",
    "RLVRModule": "module",
    "RolloutDataModule": "datamodule",
    "auto_engine": "rollout.engines.auto",
    "ReplayEngine": "rollout.engines.replay",
    "TransformersEngine": "rollout.engines.transformers_engine",
    "VLLMEngine": "rollout.engines.vllm.in_process",
    "VLLMServerEngine": "rollout.engines.vllm.server",
    "build_run": "config.build",
    "compose": "config.compose",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlvr_lightning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlvr_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
