"""Shapes of language models: what a model's `config.json` says of the number and the sizes of its tensors.

Shapes of models often trained come with the package (`assets/shapes`), so that a run can be planned before a weight is
on the machine. Each file holds the names on the hub with their number of positions, and the published number of
parameters, against which a test counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import ModelError

SHAPES = Path(__file__).parents[1] / "assets" / "shapes"
# Architectures whose layers are known to be those described here.
KNOWN = ("llama", "mistral", "qwen2", "qwen3")
# Sizes every config must give.
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder: attention with grouped keys and values, gated MLP, two norms a layer.

    Args:
        model_type: transformers' name of the architecture.
        hidden_size, intermediate_size: of the residual stream and of the MLP.
        layers, heads, kv_heads, head_dim: of the attention.
        vocabulary: rows of the embeddings.
        tied: the output layer is the embeddings.
        positions: tokens the model can attend to; None where the config does not say.
        input_bias, output_bias, mlp_bias: of query, key and value; of the attention's output; of the MLP.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    positions: int | None = None
    input_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str) -> ModelShape:
        """Read a `config.json`.

        Args:
            config: its content.
            name: of the model, for the error.

        Raises:
            ModelError: an architecture whose layers are not known here, or a size is missing.
        """
        kind = config.get("model_type")
        if kind not in KNOWN:
            raise ModelError(f"{name} is of model_type {kind!r}; what it needs is known for {', '.join(KNOWN)}")
        missing = [key for key in NEEDED if key not in config]
        if missing:
            raise ModelError(f"{name} has a config.json that does not say {', '.join(missing)}")
        heads, bias = int(config["num_attention_heads"]), bool(config.get("attention_bias", False))
        return cls(
            kind,
            int(config["hidden_size"]),
            int(config["intermediate_size"]),
            int(config["num_hidden_layers"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
            config.get("max_position_embeddings"),
            input_bias=bias or kind == "qwen2",
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
        )

    @property
    def query_size(self) -> int:
        """Numbers of a token's queries."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def normed_queries(self) -> bool:
        """Whether queries and keys pass a norm of their own."""
        return self.model_type == "qwen3"

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """A layer's linear layers: name to (in, out)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.kv_size),
            "v_proj": (hidden, self.kv_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer."""
        weights = sum(inputs * outputs for inputs, outputs in self.linears.values())
        biases = self.input_bias * (self.query_size + 2 * self.kv_size) + self.output_bias * self.hidden_size
        biases += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        norms = 2 * self.hidden_size + self.normed_queries * 2 * self.head_dim
        return weights + biases + norms

    @property
    def table(self) -> int:
        """Numbers of the embeddings, and of the output layer."""
        return self.vocabulary * self.hidden_size

    @property
    def root_parameters(self) -> int:
        """What lies outside the decoder layers: embeddings, last norm, output layer."""
        return self.table * (1 if self.tied else 2) + self.hidden_size

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.layers * self.layer_parameters + self.root_parameters

    @property
    def largest_parameter(self) -> int:
        """Numbers of the largest single tensor."""
        return max(self.table, self.hidden_size * self.intermediate_size)

    def adapter_parameters(self, rank: int, targets: str | Sequence[str]) -> int:
        """Of LoRA adapters on all layers.

        Args:
            rank: r of arXiv 2106.09685.
            targets: names of linear layers, or `all-linear` for all of them but the output layer.
        """
        chosen = self.linears if targets == "all-linear" else {name: self.linears[name] for name in targets}
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen.values())


@cache
def packaged() -> dict[str, dict[str, Any]]:
    """Configurations of the shapes in the package by their names on the hub."""
    found = {}
    for file in sorted(SHAPES.glob("*.json")):
        held = json.loads(file.read_text())
        for name, positions in held["hub_names"].items():
            found[name] = {**held["config"], "max_position_embeddings": positions}
    return found


def model_config(folder: str) -> dict[str, Any]:
    """The `config.json` of a model: of a folder, of the hub's cache on this machine, or of the package.

    Args:
        folder: as `ModelSource.folder` resolves it: an existing folder, or a name on the hub.

    Raises:
        ModelError: it is in none of these places.
    """
    from huggingface_hub import try_to_load_from_cache

    local = Path(folder) / "config.json"
    if local.is_file():
        held: dict[str, Any] = json.loads(local.read_text())
        return held
    cached = try_to_load_from_cache(folder, "config.json")
    if isinstance(cached, str):
        return dict(json.loads(Path(cached).read_text()))
    if folder not in packaged():
        raise ModelError(
            f"model.path={folder} is not on this machine, and its shape does not come with the package: give a folder "
            f"with its config.json, or one of {', '.join(sorted(packaged()))}"
        )
    return packaged()[folder]


def model_shape(folder: str) -> ModelShape:
    """The shape of a model.

    Raises:
        ModelError: its config is nowhere here, or of an architecture not known.
    """
    return ModelShape.of(model_config(folder), f"model.path={folder}")
