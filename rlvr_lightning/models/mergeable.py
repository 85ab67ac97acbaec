"""Which of peft's settings leave adapters that can be merged into the weights exactly.

Rollouts and exports use the merged weights, and the reference is the model without adapters: what is trained must be in
the one and not in the other.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from rlvr_lightning.errors import ConfigError

# Settings that change adapters peft itself merges exactly into the weights they stand beside.
MERGED = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "task_type", "peft_type"),
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "qalora_group_size", "megatron_core"),
}
REASONS = {
    "bias": "biases trained beside the adapters stay when these are switched off, which the reference is: set bias=none",
    "lora_dropout": "a token must have the same probability each time it is scored: set lora_dropout=0",
    "modules_to_save": "copies of whole modules are no adapters to be merged: name them in target_modules",
    "layer_replication": "the model would have other layers than its folder: set layer_replication=null",
    "init_lora_weights": "it changes the weights the reference consists of: set true, false or gaussian",
    "trainable_token_indices": "single rows trained are no adapters to be merged: name the embeddings in target_modules",
}


def check_mergeable(config: Any) -> None:
    """Can rollouts and exports use the merged weights, and the reference the model without adapters?

    Args:
        config: a `peft.LoraConfig`.

    Raises:
        ConfigError: a setting is not one of those peft merges exactly.
    """
    for item in fields(config):
        value = getattr(config, item.name)
        allowed = item.name in MERGED or value == _default(item)
        if item.name == "init_lora_weights":
            allowed = value in (True, False, "gaussian")
        if not allowed:
            reason = REASONS.get(item.name, "what it trains cannot be merged into the weights exactly: leave it out")
            raise ConfigError(f"peft.config.{item.name}={value} is refused: {reason}")


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default
