"""Packed rows are the padded ones without padding: same statistics, same gradients, same run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import fit, weights

from rlvr_lightning.config.components import model_source
from rlvr_lightning.config.compose import compose
from rlvr_lightning.models.packing import Packing
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.rollout.batching import collate, scored_rows
from rlvr_lightning.types import Row, TokenBatch

PROMPTS, RESPONSES = (3, 5, 2, 4, 1, 5), (7, 1, 4, 6, 2, 7)


def positions(batch: TokenBatch) -> list[list[int]]:
    return Packing.of(batch, shares=False).positions(batch.input_ids).tolist()


def rows() -> list[Row]:
    """Six responses; the third carries no weight."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, (before, after) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        mask = torch.arange(before + after - 1) >= (before - 1 if index != 2 else 99)
        noise = torch.rand(len(mask), generator=generator)
        ids = torch.randint(3, 17, (before + after,), generator=generator)
        advantage = torch.randn(1, generator=generator)
        made.append(Row(index, 0, ids, mask, advantage * mask, -noise * mask, noise))
    return made


def test_positions_begin_anew_with_each_response() -> None:
    held = rows()
    packed = collate([held[1], held[4], held[0]], 0, packed=True)
    assert positions(packed) == [[*range(6), *range(3), *range(10)]]
    assert packed.loss_mask.sum() == 1 + 2 + 7
    padded = collate([held[4], held[1]], 0, packed=False)
    assert positions(padded) == [[*range(6)], [*range(6)]]


def test_statistics_and_gradients_are_those_of_each_response_alone() -> None:
    policy, held = Policy(model_source(compose([]))), rows()
    ways = {
        "alone": ([[row] for row in held], False),
        "padded": ([held], False),
        "padded, cut": ([[held[4], held[0]], held[1:4], [held[5]]], False),
        "packed": ([held], True),
        "packed, cut": ([[held[4], held[0]], held[1:4], [held[5]]], True),
    }
    results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, (micros, packed) in ways.items():
        policy.zero_grad()
        found = {}
        for micro in micros:
            batch = collate(micro, 0, packed=packed)
            logprobs, statistics = policy(batch, 0.8, (Entropy(differentiable=True),))
            (logprobs * batch.advantages + 0.1 * statistics["entropy"]).sum().backward()
            scored = replace(batch, old_logprobs=logprobs.detach(), ref_logprobs=statistics["entropy"].detach())
            for row in scored_rows(scored, micro):
                assert row.old_logprobs is not None
                assert row.ref_logprobs is not None
                found[row.prompt_index] = torch.stack([row.old_logprobs, row.ref_logprobs])[:, row.loss_mask]
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        results[name] = torch.cat([found[index] for index in sorted(found)], dim=1), gradient
    for name in ways:
        torch.testing.assert_close(results[name][0], results["alone"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(results[name][1], results["alone"][1], rtol=1e-3, atol=1e-5)
    assert results["alone"][0].shape[1] == sum(RESPONSES) - RESPONSES[2]
    assert results["alone"][1].abs().max() > 1e-2


@pytest.mark.parametrize("conf", ["archer_lp_reg", "gspo"])
def test_a_run_learns_the_same_however_its_steps_are_cut(conf: str, tmp_path: Path) -> None:
    common = (f"conf={conf}", "rollout.prompts_per_step=4", "rollout.drop_equal_groups=true")
    ways = {
        "padded, whole": ("rollout.packing=false",),
        "padded, cut": ("rollout.packing=false", "trainer.micro_batch_tokens=120"),
        "packed, cut": ("rollout.packing=true", "trainer.micro_batch_tokens=120"),
        "packed, few": ("rollout.packing=true", "trainer.micro_batch_size=5"),
    }
    logged, trained = {}, {}
    for way, settings in ways.items():
        folder = tmp_path / way.replace(", ", "_")
        trained[way] = weights(fit(folder, *common, *settings))
        with (folder / "logs" / "metrics.csv").open() as lines:
            logged[way] = [row for row in csv.DictReader(lines) if row["reward/mean"]]
    whole = logged["padded, whole"][0]
    names = [name for name in whole if name.startswith(("policy/loss", "policy/entropy", "policy/share"))]
    assert len(names) > 3
    for way in ways:
        for name in [*names, "policy/grad_norm", "reward/mean"]:
            assert float(logged[way][0][name]) == pytest.approx(float(whole[name]), rel=1e-3, abs=1e-6), (way, name)
        assert (trained[way] - trained["padded, whole"]).abs().max() < 2e-4
