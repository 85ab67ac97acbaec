"""Make a bundled model from nothing: supervised training on worked solutions, stage by stage.

`python -m rlvr_lightning pretrain task=sparks pretrain=sparks output_dir=DIR` writes a Hugging Face folder. What a model is shown
is the task's own `Demonstrations`, with the faults that reinforcement learning is to mend. A command of the package, not a toy of
the tests: seeded, and the same seed gives the same model on the same machine.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.tiny_model import build_model, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)


@runtime_checkable
class Demonstrations(Protocol):
    """What a model is shown of a task."""

    def __call__(self, task: Any, rng: random.Random) -> tuple[str, str]:
        """A question, which is none of the held-out ones, and a response to it.

        Raises:
            ConfigError: they are of another task.
        """
        ...


@dataclass(frozen=True)
class Stage:
    """A part of the training, with an optimizer of its own (AdamW, linear warm-up over 5 % of the steps, cosine to zero).

    Args:
        demonstrations: what is shown.
        steps: optimizer steps.
        batch_size: worked solutions a step.
        lr: peak learning rate.
    """

    demonstrations: Demonstrations
    steps: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        for name, number in (("steps", self.steps), ("batch_size", self.batch_size)):
            if number < 1:
                raise ConfigError(f"a stage's {name} must be at least 1; got {number}")


@dataclass(frozen=True)
class Pretraining:
    """How a bundled model is made.

    Args:
        characters: of its vocabulary, a token each.
        stages: one after another.
        hidden_size, num_layers, num_heads: of the Llama.
        seed: of weights and data.
    """

    characters: str
    stages: Sequence[Stage]
    hidden_size: int
    num_layers: int
    num_heads: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"pretrain.hidden_size must be a multiple of num_heads; got {self.hidden_size}")


def pretrain(task: Any, settings: Pretraining, output_dir: Path) -> Path:
    """Train from nothing and write the model and its tokenizer to `output_dir` in half precision.

    Raises:
        ConfigError: the folder already holds a model, or what is shown is of another task.
    """
    if (output_dir / "model.safetensors").exists():
        raise ConfigError(f"output_dir={output_dir} already holds a model; choose another folder")
    torch.manual_seed(settings.seed)
    rng = random.Random(f"pretrain-{settings.seed}")
    tokenizer = build_tokenizer(settings.characters)
    model = build_model(len(tokenizer), settings.hidden_size, settings.num_layers, settings.num_heads)
    for number, stage in enumerate(settings.stages, 1):
        log.info("stage %d of %d", number, len(settings.stages))
        _train(model, task, tokenizer, rng, stage)
    model.to(torch.float16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return output_dir


def worked_rows(
    task: Any, tokenizer: PreTrainedTokenizerFast, rng: random.Random, stage: Stage
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [B, L]; prompts and padding carry no label (-100)."""
    rows, prompts = [], []
    for _ in range(stage.batch_size):
        question, worked = stage.demonstrations(task, rng)
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(len(tokenizer(prompt)["input_ids"]))
        rows.append(torch.tensor(tokenizer(f"{prompt}{worked}{tokenizer.eos_token}")["input_ids"]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    labels = ids.clone()
    for row, (tokens, start) in enumerate(zip(rows, prompts, strict=True)):
        labels[row, :start] = -100
        labels[row, len(tokens) :] = -100
    return ids, labels


def _train(
    model: LlamaForCausalLM, task: Any, tokenizer: PreTrainedTokenizerFast, rng: random.Random, stage: Stage
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, stage.steps, pct_start=0.05)
    for step in range(1, stage.steps + 1):
        ids, labels = worked_rows(task, tokenizer, rng, stage)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == stage.steps:
            log.info("step %d of %d, loss %.4f nats per token", step, stage.steps, loss.item())
