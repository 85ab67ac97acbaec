"""Memory of a host besides its devices', and disk."""

from __future__ import annotations

from rlvr_lightning.training.forecast.activations import token_bytes
from rlvr_lightning.training.forecast.setup import FLOAT, GIB, Setup
from rlvr_lightning.training.forecast.states import OPTIMIZER_BYTES, gradients, optimizer_state, reference, weights

# Of a process, before a model is loaded: Python, torch, Lightning, transformers; on a GPU their CUDA parts and vLLM.
PROCESS = {"cpu": 0.7 * GIB, "gpu": 4.0 * GIB}
# Of a drawn token as Python holds it: an int and a float with a place for each.
DRAWN_TOKEN = 36 + 32
# Of a token in `rollouts/*.parquet`, of a large vocabulary drawn evenly, which compresses worst.
RECORDED_TOKEN = 7
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
    """Of a phase [bytes]: this host's rows, once as they are kept and once cut into micro-batches; its responses as drawn;
    and the records of them all, which every rank has before the first writes them down."""
    everything = drawn_tokens(setup)
    mine = everything / setup.num_nodes
    return mine * (2 * token_bytes(setup) + DRAWN_TOKEN) + setup.devices * everything * DRAWN_TOKEN


def offloaded(setup: Setup) -> float:
    """Weights, gradients, optimizer state and reference of this host's ranks with `strategy.cpu_offload` [bytes]."""
    if not setup.cpu_offload:
        return 0.0
    return setup.devices * (weights(setup) + gradients(setup) + optimizer_state(setup) + reference(setup))


def checkpoint_copy(setup: Setup) -> float:
    """What a checkpoint is written from while training goes on: this host's shards once more [bytes].

    On the CPU without saving inside epochs it stands beside sampling alone: see `copy_beside_sampling`.
    """
    if setup.accelerator == "cpu" and not setup.saves_within:
        return 0.0
    return setup.devices * _copy_of_a_rank(setup)


def copy_beside_sampling(setup: Setup) -> float:
    """What that copy adds to a rank on the CPU while the next epoch's responses are drawn [bytes].

    At the end of an epoch a checkpoint follows a validation, before which Lightning frees the gradients.
    """
    if setup.accelerator == "gpu" or setup.saves_within:
        return 0.0
    return max(_copy_of_a_rank(setup) - gradients(setup), 0.0)


def _copy_of_a_rank(setup: Setup) -> float:
    return checkpoint_size(setup) / setup.shards


def checkpoint_size(setup: Setup) -> float:
    """A checkpoint on disk: float32 weights and optimizer state of what is trained [bytes]."""
    return (FLOAT + OPTIMIZER_BYTES[setup.optimizer]) * setup.trained


def checkpoints_on_disk(setup: Setup) -> float:
    """The best, the last, and the one being written [bytes]."""
    return CHECKPOINTS * checkpoint_size(setup)


def rollouts_on_disk(setup: Setup) -> float:
    """All phases' files [bytes]."""
    return setup.rollout.max_epochs * drawn_tokens(setup) * RECORDED_TOKEN
