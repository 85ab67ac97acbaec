"""The engine a machine offers: vLLM where it is installed, else transformers."""

from __future__ import annotations

from rlvr_lightning.protocols import RolloutEngine
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.rollout.engines.vllm_engine import VLLMEngine, vllm_installed


def auto_engine() -> RolloutEngine:
    """vLLM with its defaults, or transformers with its own."""
    return VLLMEngine() if vllm_installed() else TransformersEngine()
