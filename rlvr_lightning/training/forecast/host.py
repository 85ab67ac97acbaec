"""Memory of a host besides its devices', and disk."""

from __future__ import annotations

from rlvr_lightning.training.forecast.activations import token_bytes
from rlvr_lightning.training.forecast.setup import FLOAT, GIB, Setup
from rlvr_lightning.training.forecast.states import OPTIMIZER_BYTES, gradients, optimizer_state, weights

# Of a process, before a model is loaded: Python, torch, Lightning, transformers; on a GPU their CUDA parts and vLLM.
PROCESS = {"cpu": 0.7 * GIB, "gpu": 4.0 * GIB}
# Of a drawn token as Python holds it: its id, its log-probability, and a record of both for the file of rollouts.
DRAWN_TOKEN = 36 + 32 + 40
# Of a token in `rollouts/version_N.jsonl.gz`.
RECORDED_TOKEN = 10
# Complete checkpoints at a time: the best, the last, and the one being written.
CHECKPOINTS = 3


def processes(setup: Setup) -> float:
    """The ranks' processes before a model is loaded [bytes]."""
    return setup.devices * PROCESS[setup.accelerator]


def drawn_tokens(setup: Setup) -> float:
    """Tokens of a phase's responses and prompts, over all ranks, at most."""
    rollout = setup.rollout
    responses = rollout.prompts_per_epoch * rollout.group_size * rollout.generation_batches
    return responses * rollout.length


def rollouts(setup: Setup) -> float:
    """Of a phase: the rows learned from, this host's share; the responses as drawn, which every rank writes down
    together with the others [bytes]."""
    mine = drawn_tokens(setup) / setup.num_nodes
    return mine * (token_bytes(setup) + DRAWN_TOKEN)


def offloaded(setup: Setup) -> float:
    """Weights, gradients and optimizer state of this host's ranks with `strategy.cpu_offload` [bytes]."""
    if not setup.cpu_offload:
        return 0.0
    return setup.devices * (weights(setup) + gradients(setup) + optimizer_state(setup))


def checkpoint_copy(setup: Setup) -> float:
    """What a checkpoint is written from while training goes on: this host's shards once more [bytes]."""
    return checkpoint_size(setup) / setup.shards * setup.devices


def checkpoint_size(setup: Setup) -> float:
    """A checkpoint on disk: float32 weights and optimizer state of what is trained [bytes]."""
    return (FLOAT + OPTIMIZER_BYTES[setup.optimizer]) * setup.trained


def checkpoints_on_disk(setup: Setup) -> float:
    """The best, the last, and the one being written [bytes]."""
    return CHECKPOINTS * checkpoint_size(setup)


def rollouts_on_disk(setup: Setup) -> float:
    """All phases' files [bytes]."""
    return setup.rollout.max_epochs * drawn_tokens(setup) * RECORDED_TOKEN
