"""A model of random weights, problems of random words, and a reward that is a coin's: what speed is measured with."""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBLEM_WORDS = 12
PROBLEMS = 256
SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>")
TEMPLATE = "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}<assistant>"
# The config names no more positions than the longest growth asks for.
POSITIONS = 8192


@dataclass(frozen=True)
class Case:
    """What is trained, and on how much.

    Args:
        folder: of model and problems.
        prompts: of an optimizer step.
        group_size: responses to each.
        length: tokens of a response.
        micro_batches: a step is cut into.
    """

    folder: Path
    prompts: int = 8
    group_size: int = 8
    length: int = 64
    micro_batches: int = 1

    @property
    def tokens(self) -> int:
        """Of the responses of a step."""
        return self.prompts * self.group_size * self.length

    def overrides(self, engine: str, method: str = "grpo") -> list[str]:
        """Of a run that takes one step an epoch until it is ended."""
        rows = self.prompts * self.group_size // self.micro_batches
        return [
            f"conf={method}",
            f"engine={engine}",
            f"model.path={self.folder}",
            "task=jsonl",
            f"task.path={self.folder / 'problems.jsonl'}",
            "task.template='{problem}'",
            "task.held_out=1",
            "verifier=function",
            f"verifier.path={Path(__file__).resolve()}:coin",
            f"rollout.prompts_per_epoch={self.prompts}",
            f"rollout.prompts_per_step={self.prompts}",
            # On-policy, whatever the method's experiment does.
            "rollout.passes=1",
            f"rollout.group_size={self.group_size}",
            f"rollout.max_new_tokens={self.length}",
            "rollout.eval_samples=1",
            # A random model's drawn tokens are as likely as all others: nothing to compare.
            "rollout.canary_tolerance=1000",
            f"trainer.micro_batch_size={rows}",
            f"trainer.micro_batch_tokens={rows * (self.length + PROBLEM_WORDS + 8)}",
            "trainer.max_epochs=100000",
            "trainer.val_every_n_epochs=100000",
            "trainer.show_every_n_epochs=0",
            "trainer.accelerator=cpu",
            "optim.lr=1e-6",
        ]


def coin(response: str, answer: str, **row: Any) -> float:
    """Heads or tails, the same for the same response."""
    return float(zlib.crc32(response.encode()) & 1)


def make(folder: Path, vocabulary: int = 49_152, hidden: int = 256, layers: int = 4, heads: int = 4) -> Path:
    """Write model, tokenizer and problems, unless they are there. By default 16 million weights, three quarters of them embeddings."""
    if (folder / "problems.jsonl").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from rlvr_lightning.models.tiny_model import build_model

    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), vocabulary))]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=SPECIAL[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, eos, *others = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, eos_token=eos, additional_special_tokens=others, padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    build_model(vocabulary, hidden, layers, heads, POSITIONS).save_pretrained(folder)
    chosen = random.Random(0)
    problems = [" ".join(chosen.choices(words[len(SPECIAL) :], k=PROBLEM_WORDS)) for _ in range(PROBLEMS)]
    rows = [json.dumps({"id": f"p{n}", "problem": text, "answer": "1"}) for n, text in enumerate(problems)]
    (folder / "problems.jsonl").write_text("\n".join(rows) + "\n")
    return folder
