"""Responses drawn in one batch: prompts read once, those that have ended gone, and nothing of it seen in what is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rlvr_lightning.rollout.engines.together import draw_together
from rlvr_lightning.types import GenerationRequest, SamplingSpec

PROMPTS = [(5, 6, 7, 8, 9, 10), (11, 12, 13), (7,), (20, 21, 22, 23)]
REQUESTS = [GenerationRequest(PROMPTS[seed % 4], seed) for seed in range(40)]
SAMPLING = SamplingSpec(3.0, 20, (1, 2, 3, 4))
SLIDING = {"sliding_window": 4}
# Full and sliding attention, positions learned, rotated and by distance, and one that remembers a state instead of tokens.
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": SLIDING,
    "Qwen2": {**SLIDING, "use_sliding_window": True, "max_window_layers": 0},
    "Gemma2": SLIDING,
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "Mamba": {},
    "Bloom": {"n_layer": 2, "n_head": 4},
}


def model(kind: str) -> Any:
    """Of random weights, so that responses end early and late."""
    shape = {
        "hidden_size": 32,
        "head_dim": 8,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    tokens = {"vocab_size": 30, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**shape, num_key_value_heads=2, **tokens, **KINDS[kind])
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(5)
    return made


def whole(tokens: list[int]) -> list[int]:
    """A response up to its first stop token."""
    return tokens[
        : next((place + 1 for place, token in enumerate(tokens) if token in SAMPLING.stop_token_ids), len(tokens))
    ]


def read(made: Any) -> list[tuple[int, int]]:
    """Rows and tokens of each forward pass of a draw."""
    shapes: list[tuple[int, int]] = []
    hook = made.register_forward_pre_hook(
        lambda module, positional, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    draw_together(made, REQUESTS, SAMPLING, 0)
    hook.remove()
    return shapes


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_probabilities_are_those_of_each_response_alone(kind: str) -> None:
    made = model(kind)
    lengths = set()
    for request, (tokens, logprobs) in zip(REQUESTS, draw_together(made, REQUESTS, SAMPLING, 0), strict=True):
        response = whole(tokens)
        lengths.add(len(response))
        logits = made(torch.tensor([[*request.token_ids, *response]])).logits[0, len(request.token_ids) - 1 : -1]
        alone = torch.log_softmax(logits / SAMPLING.temperature, -1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs[: len(response)]), alone, rtol=0, atol=2e-4)
    assert min(lengths) <= 3
    assert max(lengths) >= 8


def test_each_prompt_is_read_once_and_what_has_ended_leaves() -> None:
    made = model("Llama")
    lengths = [len(whole(tokens)) for tokens, _ in draw_together(made, REQUESTS, SAMPLING, 0)]
    shapes = read(made)
    # Four prompts but for their last tokens; then a token a response.
    assert shapes[0] == (4, 5)
    assert all(tokens == 1 for _, tokens in shapes[1:])
    # By hand: a batch goes on without the ended ones when they are half of it, and eight at least.
    expected, alive = [], list(lengths)
    for step in range(1, max(lengths) + 1):
        expected.append(len(alive))
        left = [length for length in alive if length > step]
        if len(alive) - len(left) >= max(8, len(alive) / 2):
            alive = left
    assert [rows for rows, _ in shapes[1:]] == expected
    assert expected[-1] <= 16 < expected[0] == 40


def test_a_model_that_remembers_a_state_reads_every_row() -> None:
    shapes = read(model("Mamba"))
    assert shapes[0] == (40, 6)
    assert all(shape == (40, 1) for shape in shapes[1:])


def test_a_limit_of_one_token() -> None:
    made = model("Llama")
    drawn = draw_together(made, REQUESTS, SamplingSpec(3.0, 1, (1, 2, 3, 4)), 0)
    longer = draw_together(made, REQUESTS, SAMPLING, 0)
    assert [tokens for tokens, _ in drawn] == [tokens[:1] for tokens, _ in longer]
