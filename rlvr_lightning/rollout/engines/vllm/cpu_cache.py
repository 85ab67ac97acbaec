"""How much key-value cache vLLM is given on a CPU, where it writes to all of it at once: no more than responses can fill."""

from __future__ import annotations

from rlvr_lightning.errors import ModelError
from rlvr_lightning.models.shapes import model_shape

GIB = 2**30
# Tokens of the largest blocks that vLLM keeps a response's cache in.
BLOCK = 128


def cache_bytes(folder: str, limit_gb: int, sequences: int, length: int, number_bytes: int) -> int:
    """Cache of so many sequences of full length, and at most the limit [bytes].

    Args:
        folder: of the model; the limit itself where its shape is not known.
        limit_gb: as configured [GiB].
        sequences: drawn at a time.
        length: prompt and response together [tokens].
        number_bytes: of a number of the cache.
    """
    try:
        shape = model_shape(folder)
    except ModelError:
        return limit_gb * GIB
    # A last block is begun before it is known that nothing comes into it.
    tokens = sequences * (length // BLOCK + 2) * BLOCK
    return min(limit_gb * GIB, 2 * shape.layers * shape.kv_size * number_bytes * tokens)
