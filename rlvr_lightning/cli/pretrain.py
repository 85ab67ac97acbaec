"""Make the bundled model: supervised training on worked chains whose steps are wrong now and then.

`python -m rlvr_lightning pretrain output_dir=DIR` writes a Hugging Face folder. The skill is there and the sampling is
noisy: every step's result is wrong with probability `error_rate`, and the error is carried on. That is what
reinforcement learning can mend, and what merely stopping early is not. A command of the package, not a toy of the
tests: seeded, and the same seed gives the same model on the same machine.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.tiny_model import build_model, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from rlvr_lightning.tasks.arithmetic import Arithmetic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainSettings:
    """How the bundled model is made.

    Args:
        steps: optimizer steps.
        batch_size: worked chains a step.
        lr: peak learning rate (AdamW, linear warm-up over 5 % of the steps, cosine to zero).
        error_rate: probability that a step's result is wrong.
        hidden_size, num_layers, num_heads: of the Llama.
        seed: of weights and data.
    """

    steps: int = 3500
    batch_size: int = 64
    lr: float = 3e-3
    error_rate: float = 0.3
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.error_rate < 1:
            raise ConfigError(f"pretrain.error_rate must be in [0, 1); got {self.error_rate}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"pretrain.hidden_size must be a multiple of num_heads; got {self.hidden_size}")


def falsify(result: int, rng: random.Random, error_rate: float) -> int:
    """The result, or with probability `error_rate` a slip: off by one, by two or by ten."""
    return result + rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < error_rate else result


def noisy_rows(
    task: Arithmetic, tokenizer: PreTrainedTokenizerFast, rng: random.Random, settings: PretrainSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [B, L]; prompts and padding carry no label (-100)."""
    rows, prompts = [], []
    for _ in range(settings.batch_size):
        chain = task.draw_train(rng)
        worked, _ = chain.solve(lambda result: falsify(result, rng, settings.error_rate))
        messages = [{"role": "user", "content": chain.expression}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(len(tokenizer(prompt)["input_ids"]))
        rows.append(torch.tensor(tokenizer(f"{prompt}{worked}{tokenizer.eos_token}")["input_ids"]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    labels = ids.clone()
    for row, (tokens, start) in enumerate(zip(rows, prompts, strict=True)):
        labels[row, :start] = -100
        labels[row, len(tokens) :] = -100
    return ids, labels


def pretrain(task: Arithmetic, settings: PretrainSettings, output_dir: Path) -> Path:
    """Train from nothing and write the model and its tokenizer to `output_dir` in half precision.

    Raises:
        ConfigError: the folder already holds a model.
    """
    if (output_dir / "model.safetensors").exists():
        raise ConfigError(f"output_dir={output_dir} already holds a model; choose another folder")
    torch.manual_seed(settings.seed)
    rng = random.Random(f"pretrain-{settings.seed}")
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), settings.hidden_size, settings.num_layers, settings.num_heads)
    _train(model, task, tokenizer, rng, settings)
    model.to(torch.float16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return output_dir


def _train(
    model: LlamaForCausalLM,
    task: Arithmetic,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    settings: PretrainSettings,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.05)
    for step in range(1, settings.steps + 1):
        ids, labels = noisy_rows(task, tokenizer, rng, settings)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == settings.steps:
            log.info("step %d of %d, loss %.4f nats per token", step, settings.steps, loss.item())
