"""Each component's settings and corner cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import random_stats

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.methods.aggregators import SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from rlvr_lightning.methods.constraints.aspo import ASPO
from rlvr_lightning.methods.constraints.bapo import BAPO
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.ce_gppo import CEGPPO
from rlvr_lightning.methods.constraints.cispo import CISPO
from rlvr_lightning.methods.constraints.clip_cov import ClipCov
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.dppo import DPPO
from rlvr_lightning.methods.constraints.gmpo import GMPO
from rlvr_lightning.methods.constraints.gspo import GSPO
from rlvr_lightning.methods.constraints.opefo import OPEFO
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.corrections.mis import MIS
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.random_share import RandomShare
from rlvr_lightning.methods.partitioners.top_entropy import TopEntropy
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.methods.weightings.entropy_clip import ClipB, ClipV
from rlvr_lightning.methods.weightings.erc import ERC
from rlvr_lightning.methods.weightings.repo_r import RepoR
from rlvr_lightning.methods.weightings.stare import STARE
from rlvr_lightning.methods.weightings.steer import STEER
from rlvr_lightning.objective.responses import count_responses, response_lengths, response_mean, response_quantile
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import MaskCount, TokenStats


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EntropyQuantile(1.2), r"EntropyQuantile.quantile must be in \(0, 1\); got 1.2"),
        (lambda: EntropyQuantile(scope="row"), "EntropyQuantile.scope must be response or batch; got 'row'"),
        (lambda: EntropyQuantile(variant="x"), "EntropyQuantile.variant must be paper or reference; got 'x'"),
        (lambda: ClipKL(clip_low=1.5), r"ClipKL.clip_low must be in \[0, 1\]; got 1.5"),
        (lambda: ClipKL(clip_high={"a": -1}), r"ClipKL.clip_high must be in \[0, inf\]; got -1"),
        (lambda: ClipKL(dual_clip=1.0), "ClipKL.dual_clip must be above 1 or null; got 1.0"),
        (lambda: ClipKL(kl_estimator="k9"), "ClipKL.kl_estimator must be one of k1, k2, k3, abs; got 'k9'"),
        (lambda: CappedRatio(1.0), "CappedRatio.max_ratio must be above 1; got 1.0"),
        (lambda: LpReg(quantile=0), r"LpReg.quantile must be in \(0, 1\); got 0"),
        (lambda: LpReg(threshold=1), r"LpReg.threshold must be in \(0, 1\); got 1"),
        (lambda: LpReg(coef=-1), "LpReg.coef must be at least 0; got -1"),
        (lambda: LpReg(threshold_kind="x"), "LpReg.threshold_kind must be one of relative, absolute; got 'x'"),
        (lambda: LpReg(support=0), "LpReg.support must be at least 1, temperature above 0; got 0 and 1.0"),
        (lambda: KLCov(1.0), r"KLCov.share must be in \(0, 1\); got 1.0"),
        (lambda: KLCov(coef=-1), "KLCov.coef must be at least 0; got -1"),
        (lambda: EntropyBonus(-1), "EntropyBonus.coef must be at least 0; got -1"),
        (lambda: GSPO(-1), r"GSPO.clip_low must be in \[0, 1\]; got -1"),
        (lambda: GSPO(clip_high={"a": 1}), r"GSPO.clip_high must be one number for all parts; got \{'a': 1\}"),
        (lambda: GMPO(clip_high=-1), r"GMPO.clip_high must be in \[0, inf\]; got -1"),
        (lambda: CISPO({"a": 2}), r"CISPO.clip_low must be in \[0, 1\]; got 2"),
        (lambda: SAPO(tau_neg=0), "SAPO.tau_neg must be above 0; got 0"),
        (lambda: ClipCov(0), r"ClipCov.share must be in \(0, 1\); got 0"),
        (lambda: ClipCov(lowest=5), "ClipCov.lowest must be below highest=5.0; got 5"),
        (lambda: ASPO(dual_clip=1), "ASPO.dual_clip must be above 1; got 1"),
        (lambda: CEGPPO(beta_low=-1), r"CEGPPO.beta_low must be in \[0, inf\]; got -1"),
        (lambda: OPEFO(2), r"OPEFO.strength must be in \[0, 1\]; got 2"),
        (lambda: DPPO("tvd"), "DPPO.divergence must be tv or kl; got 'tvd'"),  # type: ignore[arg-type]
        (lambda: DPPO(delta_low={"a": -1}), r"DPPO.delta_low must be in \[0, inf\]; got -1"),
        (lambda: DPPO(max_ratio=1), "DPPO.max_ratio must be above 1; got 1"),
        (lambda: BAPO(1.0), r"BAPO.target must be in \(0, 1\), or above 0 for the reference; got 1.0"),
        (lambda: BAPO(lower=0.95), r"BAPO.lower and lower_limit must be in order, in \[0, 1\]; got 0.95 and 0.9"),
        (lambda: BAPO(upper=4), r"BAPO.upper and upper_limit must be in order, in \[1, inf\); got 4 and 3.0"),
        (lambda: BAPO(upper_step=0), "BAPO.upper_step must be above 0; got 0"),
        (lambda: BAPO(dual_clip=1), "BAPO.dual_clip must be above 1 or null; got 1"),
        (lambda: STARE(0), r"STARE.share must be in \(0, 1\); got 0"),
        (lambda: STARE(weight_pos=0.9), "STARE.weight_pos must be at least 1, and finite; got 0.9"),
        (lambda: STARE(weight_neg=1.1), r"STARE.weight_neg must be in \[0, 1\]; got 1.1"),
        (lambda: STARE(target=0), "STARE.target must be above 0; got 0"),
        (lambda: STEER(1), r"STEER.least must be in \(0, 1\); got 1"),
        (lambda: STEER(floor=0), "STEER.floor must be above 0, and finite; got 0"),
        (lambda: ClipB(0), "ClipB.deviations must be above 0; got 0"),
        (lambda: ClipV(-1), "ClipV.deviations must be above 0; got -1"),
        (lambda: ClipV(max_share=1), r"ClipV.max_share must be in \(0, 1\); got 1"),
        (lambda: RepoR(math.inf), "RepoR.zeta must be finite; got inf"),
        (lambda: ERC(0), r"ERC.clip_low must be in \(0, 1\]; got 0"),
        (lambda: ERC(clip_high=0), "ERC.clip_high must be above 0; got 0"),
        (lambda: TIS(0.5), "TIS.most must be at least 1; got 0.5"),
        (lambda: TIS(level="row"), "TIS.level must be token, sequence, geometric; got row"),  # type: ignore[arg-type]
        (lambda: MIS(level=""), "MIS.level must be token, sequence, geometric; got "),  # type: ignore[arg-type]
        (lambda: MIS(1.5, 2), "MIS.least and MIS.most must enclose 1, above 0; got 1.5 and 2"),
        (lambda: TopEntropy(1), r"TopEntropy.share must be in \(0, 1\); got 1"),
        (lambda: TopEntropy(when="x"), "TopEntropy.when must be rollout or update; got 'x'"),
        (lambda: RandomShare(0), r"RandomShare.share must be in \(0, 1\); got 0"),
        (lambda: SequenceMeanTokenSum(0), "SequenceMeanTokenSum.length must be above 0; got 0"),
        (lambda: GroupRelative(epsilon=0), "GroupRelative.epsilon must be above 0; got 0"),
    ],
)
def test_settings_out_of_range_are_named(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def entropy_stats(rows: list[list[float]], current: list[list[float]] | None = None) -> TokenStats:
    values = torch.tensor(rows, dtype=torch.float64)
    zeros = torch.zeros_like(values)
    now = values if current is None else torch.tensor(current, dtype=torch.float64)
    mask = torch.ones_like(values, dtype=torch.bool)
    return TokenStats(zeros, zeros, zeros, mask, statistics={"entropy": now}, old_statistics={"entropy": values})


@pytest.mark.parametrize(("variant", "expected"), [("paper", [0, 0, 1, 1]), ("reference", [0, 0, 0, 1])])
def test_a_tie_is_reasoning_in_the_paper_and_knowledge_in_the_code(variant: Any, expected: list[int]) -> None:
    stats = entropy_stats([[0.0, 1.0, 2.0, 3.0]])
    assert EntropyQuantile(2 / 3, variant=variant)(stats, Step()).tolist() == [expected]


@pytest.mark.parametrize(("variant", "expected"), [("paper", [0, 1]), ("reference", [1, 0])])
def test_paper_splits_at_the_rollout_and_the_code_at_the_update(variant: Any, expected: list[int]) -> None:
    stats = entropy_stats([[0.1, 0.9]], current=[[0.9, 0.1]])
    assert EntropyQuantile(0.5, variant=variant)(stats, Step()).tolist() == [expected]


def test_response_scope_does_not_depend_on_how_high_a_response_is_overall() -> None:
    stats = entropy_stats([[0.0, 0.1, 0.2, 0.3], [5.0, 5.1, 5.2, 5.3]])
    assert EntropyQuantile(0.7)(stats, Step()).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
    assert EntropyQuantile(0.7, "batch")(stats, Step()).tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]


def test_response_quantile_is_torch_quantile_of_each_response() -> None:
    stats = random_stats(7)
    values = stats.old_statistics["entropy"]
    found = response_quantile(values, stats.loss_mask, 0.35, None)
    for row in range(len(values)):
        expected = torch.quantile(values[row][stats.loss_mask[row]], 0.35)
        torch.testing.assert_close(found[row], expected.expand(values.shape[1]))
    assert float(response_quantile(values, torch.zeros_like(stats.loss_mask), 0.35, None)[0, 0]) == torch.inf


def test_gmpo_holds_a_token_only_on_the_side_that_pays() -> None:
    change = torch.tensor([[0.1, 0.9, -0.9, 0.4]] * 2, dtype=torch.float64)
    advantages = torch.tensor([[1.0] * 4, [-1.0] * 4], dtype=torch.float64)
    mask = torch.ones(2, 4, dtype=torch.bool)
    (term,) = GMPO()(TokenStats(change, torch.zeros_like(change), advantages, mask), mask.long(), mask)
    assert term.clipped is not None
    assert term.clipped.tolist() == [[False, True, False, False], [False, False, True, False]]
    means = ((0.1 + 0.4 - 0.9 + 0.4) / 4, (0.1 + 0.9 - 0.4 + 0.4) / 4)
    expected = torch.tensor([[-math.exp(means[0])] * 4, [math.exp(means[1])] * 4], dtype=torch.float64)
    torch.testing.assert_close(term.values, expected)


def test_reductions_over_the_responses_of_a_packed_row() -> None:
    values = torch.tensor([[5.0, 1.0, 2.0, 9.0, 7.0, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, True, False]])
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]])
    assert response_lengths(mask, segments).tolist() == [[2, 2, 2, 2, 2, 0]]
    assert response_mean(values, mask, segments).tolist() == [[3, 3, 8, 8, 8, 0]]
    assert response_quantile(values, mask, 0.25, segments).tolist() == [[2, 2, 7.5, 7.5, 7.5, torch.inf]]
    assert int(count_responses(mask, segments)) == 2
    assert int(count_responses(mask, None)) == 1
    alone = torch.tensor([[True, False], [False, False]])
    assert response_mean(torch.tensor([[3.0, 9.0], [4.0, 4.0]]), alone, None).tolist() == [[3, 3], [0, 0]]


def test_weights_of_the_aggregators() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    lengths = response_lengths(mask, None)
    count = MaskCount(tokens=torch.tensor(8.0).double(), rows=torch.tensor(4.0).double())
    assert TokenMean()(mask, lengths, count).tolist() == [[0.125] * 3, [0.125, 0, 0]]
    twelfth = 1 / 12
    by_response = SequenceMeanTokenMean()(mask, lengths, count)
    torch.testing.assert_close(by_response, torch.tensor([[twelfth] * 3, [0.25, 0.0, 0.0]], dtype=torch.float64))
    summed = SequenceMeanTokenSum(10.0)(mask, lengths, count)
    torch.testing.assert_close(summed, mask * torch.tensor(0.025, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_group_of_equal_rewards_has_no_advantage() -> None:
    # 0.1 is no binary fraction: its mean differs from it by rounding.
    rewards = torch.full((1, 7), 0.1)
    assert GroupRelative()(rewards, torch.ones_like(rewards, dtype=torch.bool)).abs().max() == 0


def test_a_missing_verdict_is_left_out_of_mean_and_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 123.0, 1.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, False, True]])
    advantages = GroupRelative()(rewards, valid)
    three = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    expected = (three - three.mean()) / (three.std() + 1e-6)
    torch.testing.assert_close(advantages[0, [0, 1, 3]], expected)
    assert float(advantages[0, 2]) == 0


def test_one_verdict_alone_teaches_nothing() -> None:
    rewards = torch.tensor([[1.0, 0.0]])
    assert GroupRelative()(rewards, torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
