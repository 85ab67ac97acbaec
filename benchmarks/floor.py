"""What a step cannot do without: `python -m benchmarks.floor FOLDER PROMPTS GROUP LENGTH`.

vLLM's sampling as it comes, then one forward and backward pass of transformers' model over what was drawn; the output layer is
applied to a chunk of tokens at a time and again in the backward pass, so that all logits never exist at once. No advantage, no
log, no optimizer, no weights on their way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.turns import answer, peak, wait

# Logits that exist at a time, as in ours.
CHUNK_ELEMENTS = 2**25


def main(folder: Path, prompts: int, group: int, length: int) -> None:
    """A step whenever told to."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
    wait()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import LLM, SamplingParams

    threads = torch.get_num_threads()
    llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=512, disable_log_stats=True)
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [json.loads(line)["problem"] for line in (folder / "problems.jsonl").read_text().splitlines()]
    ids = [tokenizer(f"<user> {text} <assistant>")["input_ids"] for text in texts[:prompts]]
    sampling = SamplingParams(temperature=1.0, max_tokens=length, n=group, logprobs=0, detokenize=False)
    answer(0.0, peak())
    while wait():
        began = time.perf_counter()
        drawn = llm.generate([{"prompt_token_ids": one} for one in ids], sampling, use_tqdm=False)
        sampled = time.perf_counter()
        responses = [list(one.token_ids) for output in drawn for one in output.outputs]
        longest = max(map(len, responses))
        rows = [(ids[place // group], response) for place, response in enumerate(responses)]
        padded = torch.tensor([prompt + response + [0] * (longest - len(response)) for prompt, response in rows])
        scored = torch.tensor([[at < len(response) for at in range(longest)] for _, response in rows])
        update(model, padded, scored)
        now = time.perf_counter()
        answer(now - began, peak(), sampling=sampled - began, updating=now - sampled)


def update(model: torch.nn.Module, tokens: Tensor, scored: Tensor) -> None:
    """One forward and backward pass; `scored` of the last columns."""
    width = scored.shape[1]
    body, head = model.model, model.lm_head
    hidden = body(input_ids=tokens).last_hidden_state[:, -width - 1 : -1][scored]  # type: ignore[operator]
    chosen = tokens[:, -width:][scored]

    def part(states: Tensor, ids: Tensor) -> Tensor:
        return head(states).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).sum()  # type: ignore[operator, no-any-return]

    rows = CHUNK_ELEMENTS // head.weight.shape[0]  # type: ignore[union-attr, operator]
    sums = [
        checkpoint(part, states, ids, use_reentrant=False)
        for states, ids in zip(hidden.split(rows), chosen.split(rows), strict=True)
    ]
    model.zero_grad()
    torch.stack(sums).sum().neg().backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
