"""Where the language model comes from: a Hugging Face folder, with or without LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlvr_lightning.errors import ModelError
from rlvr_lightning.models.mergeable import check_mergeable
from rlvr_lightning.models.recompute import every_nth

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASSETS = Path(__file__).parents[1] / "assets"
# Of task=arithmetic, and of the tasks they are named after.
BUNDLED = ("tiny", "sparks", "countdown")


def bundled_model(name: str = "tiny") -> Path:
    """The folder of a model that comes with the package."""
    return ASSETS / name


@dataclass(frozen=True)
class ModelSource:
    """A model folder and how to load it.

    Args:
        path: a Hugging Face folder, a hub name, or the name of a bundled model (`tiny`, `sparks`, `countdown`).
        lora: a `peft.LoraConfig` to train adapters instead of the weights, or None.
        gradient_checkpointing: decoder layers computed once more in the backward pass, instead of kept: `none`, `full`
            or n for every n-th; True is `full`, False `none`.
        attention: the backend policies compute with; `auto` is sdpa, or the model's own where it has no sdpa.

    Raises:
        ConfigError: another value of `gradient_checkpointing`, or adapters that cannot be merged.
    """

    path: str = BUNDLED[0]
    lora: Any = None
    gradient_checkpointing: str | int | bool = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        every_nth(self.gradient_checkpointing)
        if self.lora is not None:
            check_mergeable(self.lora)

    @property
    def folder(self) -> str:
        """The path with a bundled model's name resolved.

        Raises:
            ModelError: it looks like a folder and there is none.
        """
        if self.path in BUNDLED:
            return str(bundled_model(self.path))
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        path = Path(self.path).expanduser()
        if path.is_dir() and not (path / "config.json").exists():
            raise ModelError(f"model.path={self.path} has no config.json: give a Hugging Face model folder")
        if not path.is_dir() and looks_local:
            raise ModelError(
                f"model.path={self.path} does not exist: give a Hugging Face folder, or a bundled model ({', '.join(BUNDLED)})"
            )
        return str(path) if path.is_dir() else self.path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer.

        Raises:
            ModelError: there is none, or it has no end-of-sequence token.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ModelError(f"model.path={self.path} has no usable tokenizer: {_first_line(error)}") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(f"model.path={self.path}: the tokenizer has no end-of-sequence token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model as it stands in the folder, without adapters, its weights in `dtype`.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model.path={self.path} cannot be loaded: {_first_line(error)}") from error
        return model

    def build(self) -> PreTrainedModel:
        """The model without its weights, which are on the meta device in float32; its computed buffers are there.

        Raises:
            ModelError: its configuration cannot be used.
        """
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        try:
            config = AutoConfig.from_pretrained(self.folder)
            with no_init_weights(), init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model.path={self.path} cannot be loaded: {_first_line(error)}") from error
        model.tie_weights()
        return model

    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: the tokenizer's and the generation config's end-of-sequence tokens."""
        from transformers import GenerationConfig

        stops = {int(self.tokenizer.eos_token_id)}
        try:
            configured = GenerationConfig.from_pretrained(self.folder).eos_token_id
        except OSError:  # the file is optional
            configured = None
        stops.update([configured] if isinstance(configured, int) else configured or [])
        return tuple(sorted(stops))

    def max_positions(self) -> int | None:
        """Tokens the model can attend to, prompt and response together; None where its config does not say."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder).get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return None if limit is None else int(limit)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
