"""Probes and styles of a task, at every validation: against the model's own distribution, and counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from training import fit

from rlvr_lightning import Sparks
from rlvr_lightning.callbacks.outputs import read_series
from rlvr_lightning.callbacks.watching import WatchingCallback
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.micro_batches import Budget
from rlvr_lightning.rollout.recorded import read_recorded
from rlvr_lightning.types import Probe

SIZES = (
    "conf=sparks",
    "trainer.max_epochs=2",
    "trainer.val_every_n_epochs=1",
    "task.num_held_out=16",
    "trainer.micro_batch_tokens=64",
)


def test_what_is_logged_is_what_the_policy_says_and_what_it_wrote(tmp_path: Path) -> None:
    run = fit(tmp_path, *SIZES)
    series, model = read_series(tmp_path), run.module.policy.causal_lm
    tokenizer = ModelSource("sparks").tokenizer
    prompts = [
        tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True, tokenize=False)
        for p in Sparks(num_held_out=16).held_out()
    ]
    with torch.no_grad():
        first = model(input_ids=tokenizer(prompts, return_tensors="pt")["input_ids"]).logits[:, -1].softmax(-1)
    expected = float(first[:, tokenizer.convert_tokens_to_ids("?")].mean())
    assert series["val/probe/spark"][-1] == (2, pytest.approx(expected, rel=1e-4))
    assert series["val/probe/spark"][0][1] != pytest.approx(expected, rel=1e-4)
    drawn = [record for record in read_recorded(tmp_path / "held_out") if record["policy_version"] == 2]
    responses = 16 * run.module.eval_samples
    assert len(drawn) == responses
    styles = Counter(Sparks.style(record["response"]) for record in drawn)
    right = Counter(Sparks.style(record["response"]) for record in drawn if record["correct"])
    for style in Sparks.styles:
        assert series[f"val/style_share/{style}"][-1] == (2, pytest.approx(styles[style] / responses))
        if styles[style]:
            assert series[f"val/style_accuracy/{style}"][-1] == (2, pytest.approx(right[style] / styles[style]))
    assert styles["direct"] > 0.7 * responses
    assert sum(right.values()) / responses == pytest.approx(series["val/avg_at_k"][-1][1])


def test_a_probe_is_one_token(tmp_path: Path) -> None:
    class Watched(Sparks):
        probes = (Probe("two", "?", "+4"),)

    with pytest.raises(ConfigError, match=r"probe two: with model.path=sparks, '\+4' after '\?' is not one token"):
        WatchingCallback(Watched(), ModelSource("sparks"), Budget())
    Watched.probes = (Probe("sign", "?", "+"),)
    WatchingCallback(Watched(), ModelSource("sparks"), Budget())
