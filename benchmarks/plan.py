"""The forecast of `plan` against the memory of real runs on the CPU: random Llamas, a rank's peak beside what was said.

    python benchmarks/plan.py [NAME ...]

Each case is a whole `fit` of a few short steps in a fresh process (two for two ranks): sampling with transformers, scoring,
updates with AdamW. A process's peak is VmHWM as Linux counts it, above that of the same run with the bundled model of
0.86M parameters, which is what Python and the libraries take. So that memory given back is given back to the system, glibc
is told to keep one arena and to map every block above 64 KiB on its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

GIB = 2**30
# hidden, inner, layers, heads, vocabulary
SIZES = {
    "20M": (256, 1024, 12, 4, 32768),
    "60M": (512, 2048, 13, 8, 8192),
    "160M": (768, 3072, 16, 12, 8192),
}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# Together 32 tokens; most of the task's prompts have 11 to 13.
PROMPT, RESPONSE = 13, 19
# A phase of 64 responses makes two optimizer steps of two micro-batches of 512 tokens: gradients and optimizer state are
# there when the last one runs.
RUN = (
    "conf=grpo",
    "engine=transformers",
    "engine.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.val_every_n_epochs=1",
    "trainer.micro_batch_tokens=512",
    "rollout.prompts_per_epoch=16",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.passes=1",
    f"rollout.max_prompt_tokens={PROMPT}",
    f"rollout.max_new_tokens={RESPONSE}",
    "rollout.eval_samples=1",
    "task.num_held_out=8",
)
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "recomputed": ("model.gradient_checkpointing=full",),
    "lora": ("peft=lora",),
    "reference": ("constraint.kl_coef=0.01",),
    "fsdp x 2": ("strategy=fsdp", "trainer.devices=2"),
}


@dataclass(frozen=True)
class Measured:
    """One case [bytes].

    Args:
        forecast, peak: of a rank, above the bundled model's.
    """

    forecast: float
    peak: float

    @property
    def error(self) -> float:
        """Share of the peak by which the forecast is off."""
        return self.forecast / self.peak - 1


def make_model(folder: Path, size: str) -> Path:
    """A Llama with random weights and the bundled tokenizer, whose tokens are a small part of the vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlvr_lightning.models.source import bundled_model

    hidden, inner, layers, heads, vocabulary = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=PROMPT + RESPONSE,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled_model() / file, folder)
    return folder


def forecast_of_a_rank(overrides: tuple[str, ...]) -> float:
    """What `plan` says a rank's process needs, Python and libraries left out [bytes]."""
    from rlvr_lightning.cli.plan import plan_run
    from rlvr_lightning.config.compose import compose
    from rlvr_lightning.training.forecast.host import processes

    planned = plan_run(compose(list(overrides)))
    return (planned.host_total - processes(planned.setup)) / planned.setup.devices


def peak_of_a_rank(overrides: tuple[str, ...]) -> float:
    """The largest peak of a run's processes [bytes]."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "fit", *overrides, f"output_dir={folder}/run"]
        environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", "PLAN_PEAKS": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return max(json.loads(file.read_text()) for file in Path(folder).glob("peak_*.json"))


@cache
def bundled(ranks: tuple[str, ...]) -> tuple[float, float]:
    """Forecast and peak of the bundled model [bytes]."""
    overrides = (*RUN, *ranks, "model.path=tiny")
    return forecast_of_a_rank(overrides), peak_of_a_rank(overrides)


def measure(model: Path, way: str) -> Measured:
    """One case."""
    overrides = (*RUN, *WAYS[way], f"model.path={model}")
    said, peak = bundled(WAYS[way] if "trainer.devices=2" in WAYS[way] else ())
    return Measured(forecast_of_a_rank(overrides) - said, peak_of_a_rank(overrides) - peak)


def main(names: list[str]) -> None:
    """Measure the cases whose `SIZE WAY` contains one of the names (all without any) and print them."""
    print("| model | run | forecast [GiB] | peak [GiB] | off |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            model = make_model(Path(folder) / size, size)
            for way in WAYS:
                if names and not any(name in f"{size} {way}" for name in names):
                    continue
                case = measure(model, way)
                sizes = f"{case.forecast / GIB:.3f} | {case.peak / GIB:.3f}"
                print(f"| {size} | {way} | {sizes} | {case.error:+.1%} |", flush=True)
            shutil.rmtree(model)


def child(arguments: list[str]) -> None:
    """A run as typed; its process's peak is left in a file."""
    from rlvr_lightning.cli.main import main as run

    code = run(arguments)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    (Path(os.environ["PLAN_PEAKS"]) / f"peak_{os.getpid()}.json").write_text(json.dumps(peak))
    raise SystemExit(code)


if __name__ == "__main__":
    child(sys.argv[1:]) if sys.argv[1:2] == ["fit"] else main(sys.argv[1:])
