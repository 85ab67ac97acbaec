"""Memory that stays: weights, gradients, optimizer state, the reference, copies for computing."""

from __future__ import annotations

from rlvr_lightning.training.forecast.setup import FLOAT, HALF, Setup

# Bytes a trained parameter's optimizer state takes. The 8-bit kinds keep a float32 scale for each block of 256 numbers.
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0 + 2 * FLOAT / 256, "adamw_paged": 8.0}


def weights(setup: Setup) -> float:
    """Float32 weights: 4 P / S, S pieces under fsdp, else 1; adapters included [bytes]."""
    return FLOAT * (setup.trained + setup.frozen) / setup.shards


def gradients(setup: Setup) -> float:
    """Float32 gradients: 4 P_trained / S [bytes].

    With `reduce_gradients=step` (or `auto`, where there is room) a rank holds them whole until the last micro-batch.
    Under ddp the buckets in which they travel hold them a second time.
    """
    if setup.holds_gradient:
        return FLOAT * setup.trained * (1 + 1 / setup.shards)
    return FLOAT * setup.trained / setup.shards * (2 if setup.strategy == "ddp" else 1)


def optimizer_state(setup: Setup) -> float:
    """AdamW's two moments: 8 P_trained / S, or 2 P_trained / S and the blocks' scales in 8 bits [bytes]."""
    return OPTIMIZER_BYTES[setup.optimizer] * setup.trained / setup.shards


def optimizer_work(setup: Setup) -> float:
    """What the update itself allocates: on a GPU it is fused, on the CPU two tensors as large as the largest [bytes]."""
    if setup.accelerator == "gpu":
        return 0.0
    largest = setup.shape.largest_parameter if setup.adapter_rank is None else 0
    return 2 * FLOAT * largest / setup.shards


def reference(setup: Setup) -> float:
    """A frozen copy, sharded as the policy: 4 P / S; none with adapters, which are switched off instead [bytes]."""
    return FLOAT * setup.shape.parameters / setup.shards if setup.reference else 0.0


def gathered(setup: Setup) -> float:
    """What fsdp gathers to compute with, in the dtype computed in [bytes].

    What lies outside the layers stays from the forward pass to the end of the backward pass. Of the layers two are held
    (the one at work and the next on its way, which is held once more as it arrives), or all without resharding.
    """
    if setup.strategy != "fsdp" or setup.ranks == 1:
        return 0.0
    shape, number = setup.shape, setup.compute_bytes
    layers = 3 if setup.reshard else shape.layers + 1
    return number * (shape.root_parameters + min(layers, shape.layers + 1) * shape.layer_parameters)


def gathered_gradients(setup: Setup) -> float:
    """Under fsdp the gradients of a layer, and at the end those outside the layers, before they are reduced [bytes].

    Whole in the dtype computed in, and once more in float32 for the reduction.
    """
    if setup.strategy != "fsdp" or setup.ranks == 1 or setup.adapter_rank is not None:
        return 0.0
    return (setup.compute_bytes + FLOAT) * max(setup.shape.root_parameters, setup.shape.layer_parameters)


def cast_weights(setup: Setup) -> float:
    """Autocast's copies of the linear layers' weights in bfloat16, kept for the backward pass: 2 P_linear [bytes]."""
    if not setup.half or setup.strategy == "fsdp":
        return 0.0
    shape = setup.shape
    linears = sum(inputs * outputs for inputs, outputs in shape.linears.values())
    return HALF * (shape.layers * linears + shape.table)
