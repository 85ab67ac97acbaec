"""Memory of the rollout engine, which shares the device with the trainer."""

from __future__ import annotations

from rlvr_lightning.training.forecast.activations import cache
from rlvr_lightning.training.forecast.setup import FLOAT, GIB, Setup

# What vLLM takes besides weights and cache: profiling run, captured graphs, sampler.
VLLM_WORKSPACE = 2 * GIB
# Bytes of a number of the vocabulary while transformers' engine draws: logits and their float32 copy, divided,
# log-probabilities, their double, exponential and running sum in double, the scores handed back.
DRAWING_BYTES = 4 * FLOAT + 3 * 8 + 2 * FLOAT


def engine_weights(setup: Setup) -> float:
    """The engine's own copy of the model, whole on every rank [bytes]."""
    return setup.engine.number_bytes * setup.shape.parameters


def engine_least(setup: Setup) -> float:
    """The least vLLM starts with: weights, workspace, the cache of one response of full length [bytes]."""
    return engine_weights(setup) + VLLM_WORKSPACE + cache(setup, 1)


def engine_room(setup: Setup) -> float | None:
    """The device's memory vLLM may take; None where it is not known, or another engine draws [bytes]."""
    if setup.engine.kind != "vllm" or setup.accelerator != "gpu" or setup.device_memory is None:
        return None
    return setup.engine.share * setup.device_memory


def engine_cache(setup: Setup) -> float:
    """vLLM's cache and workspace, there from its start to the end [bytes]: the rest of its share, or what it is given."""
    if setup.engine.kind != "vllm":
        return 0.0
    if setup.accelerator == "cpu":
        return setup.engine.cpu_cache
    room = engine_room(setup)
    return engine_least(setup) - engine_weights(setup) if room is None else max(room - engine_weights(setup), 0.0)


def drawing_work(setup: Setup) -> float:
    """What transformers' engine takes while it draws [bytes]: the cache of its batch, and a row of the vocabulary each.

    The cache grows by copying, a layer at a time.
    """
    if setup.engine.kind != "transformers":
        return 0.0
    rollout = setup.rollout
    sequences = min(setup.engine.batch_size, -(-rollout.prompts_per_epoch * rollout.group_size // setup.ranks))
    grown = 1 + 1 / setup.shape.layers
    return cache(setup, sequences) * grown + sequences * setup.shape.vocabulary * DRAWING_BYTES


def sync_work(setup: Setup) -> float:
    """Handing the weights over, one tensor at a time: the largest gathered in float32, and cast [bytes]."""
    if setup.strategy != "fsdp":
        return 0.0
    return (FLOAT + setup.engine.number_bytes) * setup.shape.largest_parameter
