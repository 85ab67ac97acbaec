"""Packed rows are the padded ones without padding: same statistics, same gradients, same run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from training import fit, weights

from rlvr_lightning.config.build import model_source
from rlvr_lightning.config.compose import compose
from rlvr_lightning.models.policy import Policy, packed_positions
from rlvr_lightning.objective.token_stats import Entropy
from rlvr_lightning.rollout.packing import bins_of, pack
from rlvr_lightning.types import TokenBatch

PROMPTS, RESPONSES = (3, 5, 2, 4, 1, 5), (7, 1, 4, 6, 2, 7)


def padded() -> TokenBatch:
    """Six responses; the third carries no weight."""
    generator = torch.Generator().manual_seed(0)
    rows, before, after = len(PROMPTS), max(PROMPTS), max(RESPONSES)
    columns = torch.arange(before + after)
    left, right = (torch.tensor(x).unsqueeze(1) for x in (PROMPTS, RESPONSES))
    real = (columns >= before - left) & (columns < before + right)
    ids = torch.where(real, torch.randint(3, 17, real.shape, generator=generator), 0)
    mask = real[:, before:].clone()
    mask[2] = False
    noise = torch.rand(rows, after, generator=generator)
    return TokenBatch(
        ids, real.long(), mask, torch.randn(rows, 1).expand(rows, after) * mask, -noise * mask, noise=noise
    )


def test_every_row_with_weight_is_in_one_bin_that_holds_it() -> None:
    bins = bins_of(padded())
    assert sorted(row for rows in bins for row in rows) == [0, 1, 3, 4, 5]
    # 12, 10, 10, 6 and 3 tokens in rows of 12
    assert bins == [[5], [0], [3], [1, 4]]


def test_positions_begin_anew_with_each_response() -> None:
    packed = pack(padded(), [[1, 4], [0]], 0)
    assert packed_positions(packed).tolist() == [
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1],
    ]
    assert packed.loss_mask.sum(1).tolist() == [1 + 2, 7]


def test_statistics_and_gradients_are_those_of_the_padded_rows() -> None:
    policy, batch = Policy(model_source(compose([]))), padded()
    bins = [[1, 4], [5], [3], [0], []]
    packed = pack(batch, bins, 0)
    results = []
    for one in (batch, packed):
        policy.zero_grad()
        logprobs, statistics = policy(one, 0.8, (Entropy(differentiable=True),))
        (logprobs * one.advantages + 0.1 * statistics["entropy"]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        results.append((logprobs.detach(), statistics["entropy"].detach(), gradient))
    order = [row for rows in bins for row in rows]
    for there, here in zip(results[1][:2], results[0][:2], strict=True):
        mine = torch.cat([here[row][batch.loss_mask[row]] for row in order])
        torch.testing.assert_close(there[packed.loss_mask], mine, rtol=1e-4, atol=1e-5)
    for name in ("advantages", "rollout_logprobs", "noise"):
        mine = torch.cat([getattr(batch, name)[row][batch.loss_mask[row]] for row in order])
        assert torch.equal(getattr(packed, name)[packed.loss_mask], mine)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-3, atol=1e-5)
    assert results[0][2].abs().max() > 1e-2


@pytest.mark.parametrize("conf", ["archer_lp_reg", "gspo"])
def test_a_packed_run_learns_the_same(conf: str, tmp_path: Path) -> None:
    common = (
        f"conf={conf}",
        "rollout.prompts_per_step=4",
        "trainer.micro_batch_size=5",
        "rollout.drop_equal_groups=true",
    )
    rows, trained = {}, {}
    for packing in ("false", "true"):
        folder = tmp_path / packing
        trained[packing] = weights(fit(folder, *common, f"rollout.packing={packing}"))
        with (folder / "logs" / "metrics.csv").open() as lines:
            rows[packing] = [row for row in csv.DictReader(lines) if row["reward/mean"]]
    names = [name for name in rows["true"][0] if name.startswith(("policy/loss", "policy/entropy", "policy/share"))]
    assert len(names) > 3
    for name in [*names, "policy/grad_norm", "reward/mean"]:
        there, here = float(rows["true"][0][name]), float(rows["false"][0][name])
        assert there == pytest.approx(here, rel=1e-3, abs=1e-6), name
    assert (trained["true"] - trained["false"]).abs().max() < 2e-4
