"""Memory of a micro-batch: what is kept for the backward pass, and what works for a moment.

Counted from what transformers' Llama and Qwen layers hand to autograd (checked with saved-tensor hooks in
`tests/test_forecast.py`), with flash or memory-efficient attention, which keeps no L x L matrix.
"""

from __future__ import annotations

from rlvr_lightning.objective.token_stats import CHUNK_ELEMENTS
from rlvr_lightning.training.forecast.setup import FLOAT, Setup


def layer_activations(setup: Setup) -> float:
    """Kept of one decoder layer for a token [bytes].

    With h the residual stream, q and k the sizes of queries and keys, i the MLP's, c bytes of a number computed with:
    two norms keep their float32 input and, where their weight is trained, their normalised input, (4 + c) h each; the
    linear layers keep their inputs, the norms' outputs once each, 2 c h (under autocast a copy for each of the five
    layers that read them); attention keeps query, key, value and its output, c (2 q + 2 k), and 4 bytes a head (packed,
    sdpa's output is kept once more, put together from the responses); the MLP keeps gate, its activation, up and their
    product, 4 c i. A norm on queries and keys keeps (4 + c) of each.
    """
    shape, number, trained = setup.shape, setup.compute_bytes, setup.adapter_rank is None
    autocast = setup.half and setup.strategy != "fsdp"
    # Under autocast the residual stream stays float32.
    stream = FLOAT if autocast else number
    norms = 2 * shape.hidden_size * (FLOAT + (stream if trained else 0))
    inputs = shape.hidden_size * number * (5 if autocast else 2)
    attention = number * (2 * shape.query_size + 2 * _kept_keys(setup)) + FLOAT * shape.heads
    if setup.packed and setup.attention in ("auto", "sdpa"):
        attention += number * shape.query_size
    if shape.normed_queries:
        normed = FLOAT + (number if trained else 0)
        attention += normed * (shape.query_size + shape.kv_size) + FLOAT * (shape.heads + shape.kv_heads)
    mlp = 4 * number * shape.intermediate_size
    if setup.attention == "eager":
        # Probabilities of every pair of tokens, in float32 and in the dtype computed in.
        attention += shape.heads * setup.rollout.length * (FLOAT + number)
    return norms + inputs + attention + mlp + 2 * FLOAT + adapter_activations(setup)


def _kept_keys(setup: Setup) -> int:
    """Numbers of a token's keys that attention keeps: on a GPU float32 kernels want one for each query."""
    shape = setup.shape
    return shape.query_size if setup.accelerator == "gpu" and not setup.half else shape.kv_size


def adapter_activations(setup: Setup) -> float:
    """Kept by LoRA's narrow middle of every linear layer for a token [bytes]."""
    if setup.adapter_rank is None:
        return 0.0
    names = setup.shape.linears if setup.adapter_targets == "all-linear" else setup.adapter_targets
    return len(names) * setup.adapter_rank * setup.compute_bytes


def kept(setup: Setup) -> float:
    """Kept of a micro-batch [bytes]: of a recomputed layer its input alone, of any other all."""
    shape = setup.shape
    autocast = setup.half and setup.strategy != "fsdp"
    stream = FLOAT if autocast else setup.compute_bytes
    again = 0 if setup.recompute == 0 else -(-shape.layers // setup.recompute)
    trained = setup.adapter_rank is None
    last_norm = shape.hidden_size * (FLOAT + (stream if trained else 0))
    # The last states, and those of them that score a token.
    heads = 2 * shape.hidden_size * stream
    token = again * shape.hidden_size * stream + (shape.layers - again) * layer_activations(setup) + last_norm + heads
    return setup.micro_tokens * token


def logits_work(setup: Setup) -> float:
    """The pass over the logits, a chunk at a time [bytes].

    One buffer of float32 logits, which going back their gradient overwrites, the output layer's gradient before it is
    added, and the hidden states' own; in half precision the logits as the product gives them, and under autocast the
    output layer in it. Results in between are of a few tokens at a time.
    """
    shape, half = setup.shape, setup.compute_bytes if setup.half else 0
    cast = 0 if setup.strategy == "fsdp" else half * shape.table
    head = 0 if setup.adapter_rank is not None else FLOAT * shape.table
    hidden = FLOAT * setup.micro_tokens * shape.hidden_size
    return logits_buffer(setup) + cast + head + hidden


def logits_buffer(setup: Setup) -> float:
    """A chunk of logits [bytes]."""
    rows = min(max(1, CHUNK_ELEMENTS // setup.shape.vocabulary), setup.micro_tokens)
    return (FLOAT + (setup.compute_bytes if setup.half else 0)) * rows * setup.shape.vocabulary


def layer_work(setup: Setup) -> float:
    """The backward pass through one layer [bytes].

    Its activations where they are made again; the gradients of the MLP's three inner states and of two residual
    states; the largest weight gradient before it is added.
    """
    shape, number = setup.shape, setup.compute_bytes
    again = layer_activations(setup) if setup.recompute else 0.0
    token = again + number * (3 * shape.intermediate_size + 2 * shape.hidden_size)
    largest = shape.hidden_size * shape.intermediate_size if setup.adapter_rank is None else 0
    return setup.micro_tokens * token + FLOAT * largest


def batch(setup: Setup) -> float:
    """A step's tokens on the device: ids, mask, advantages and log-probabilities, about 40 bytes a token [bytes]."""
    return setup.micro_batches * setup.micro_tokens * token_bytes(setup)


def token_bytes(setup: Setup) -> float:
    """Of a token of the training batch [bytes]."""
    return 8 + 1 + FLOAT * (5 + setup.statistics)


def scoring_work(setup: Setup) -> float:
    """A forward pass without gradients [bytes]: one layer's states, the last ones, and a chunk of logits."""
    shape, number = setup.shape, setup.compute_bytes
    token = number * (3 * shape.intermediate_size + 4 * shape.hidden_size)
    return setup.micro_tokens * token + logits_buffer(setup)


def cache(setup: Setup, sequences: int) -> float:
    """Keys and values of so many sequences of full length [bytes]: 2 x layers x k x tokens."""
    shape = setup.shape
    number = setup.engine.number_bytes
    return 2.0 * shape.layers * shape.kv_size * number * sequences * setup.rollout.length
