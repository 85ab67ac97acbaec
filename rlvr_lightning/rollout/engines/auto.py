"""The engine a machine offers: vLLM where it is installed, else transformers."""

from __future__ import annotations

from rlvr_lightning.protocols import RolloutEngine
from rlvr_lightning.rollout.engines.dtypes import EngineDtype
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.rollout.engines.vllm.in_process import VLLMEngine
from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed


def auto_engine(dtype: EngineDtype = "auto") -> RolloutEngine:
    """vLLM with its defaults, or transformers with its own.

    Args:
        dtype: of the weights sampled from; `auto` is what the trainer computes in.
    """
    return VLLMEngine(dtype=dtype) if vllm_installed() else TransformersEngine(dtype=dtype)
