"""TRL's GRPOTrainer on the same model, problems, reward and number of tokens: `python -m benchmarks.peer FOLDER PROMPTS GROUP LENGTH`.

Needs `trl`. It samples with transformers: its vLLM beside the trainer does not start on a CPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import coin
from benchmarks.turns import answer, peak, wait


def main(folder: Path, prompts: int, group: int, length: int) -> None:
    """A step whenever told to."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class TakesTurns(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not self.began:
                wait()
                TakesTurns.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            answer(time.perf_counter() - self.began, peak())
            if not wait():
                os._exit(0)
            TakesTurns.began = time.perf_counter()

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return [coin(text, "") for text in completions]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(line)["problem"] for line in (folder / "problems.jsonl").read_text().splitlines()]
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=prompts * group,
        num_generations=group,
        max_completion_length=length,
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        max_steps=100_000,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        gradient_checkpointing=False,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": f"<user> {text} <assistant>"} for text in texts]),
        processing_class=tokenizer,
        callbacks=[TakesTurns()],
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
