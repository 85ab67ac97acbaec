"""Components together: whatever makes sense runs, and what makes none is refused with the reason."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from objectives import AGGREGATORS, HIGH, LOW, MEAN, loss_of, random_case

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.aspo import ASPO
from rlvr_lightning.methods.constraints.bapo import BAPO
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.ce_gppo import CEGPPO
from rlvr_lightning.methods.constraints.cispo import CISPO
from rlvr_lightning.methods.constraints.clip_cov import ClipCov
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.dppo import DPPO
from rlvr_lightning.methods.constraints.flexible_clip import FlexibleClip
from rlvr_lightning.methods.constraints.gmpo import GMPO
from rlvr_lightning.methods.constraints.gspo import GSPO
from rlvr_lightning.methods.constraints.only_part import OnlyPart
from rlvr_lightning.methods.constraints.opefo import OPEFO
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.corrections.mis import MIS
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.random_share import RandomShare
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.partitioners.top_entropy import TopEntropy
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.methods.weightings.entropy_clip import ClipB, ClipV
from rlvr_lightning.methods.weightings.erc import ERC
from rlvr_lightning.methods.weightings.repo_r import RepoR
from rlvr_lightning.methods.weightings.stare import STARE
from rlvr_lightning.methods.weightings.steer import STEER
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step


def every_constraint(parts: tuple[str, ...]) -> list[Any]:
    """Fresh ones: binding is a constraint's own."""
    whole = [GSPO(), GMPO()]
    tokens = [ClipKL(kl_coef=0.1), CappedRatio(), CISPO(), SAPO(), ClipCov(), ASPO(), CEGPPO(), FlexibleClip(), OPEFO()]
    return [*whole, *tokens, BAPO(), DPPO(), OnlyPart(parts[-1], ClipKL()), OnlyPart(parts[-1], DPPO())]


def test_whatever_makes_sense_together_runs() -> None:
    case = random_case(0, rows=6, on_policy=True)
    regularizers: dict[str, Any] = {
        "lp_reg": LpReg(0.4, 0.02),
        "kl_cov": KLCov(0.2),
        "entropy_bonus": EntropyBonus(),
        "shield": LpReg(0.4, 0.1, variant="reference"),
    }
    lists = [{}, {"entropy_bonus"}, {"lp_reg", "kl_cov", "entropy_bonus"}, set(regularizers)]
    partitioners = (
        SinglePart(),
        EntropyQuantile(),
        EntropyQuantile(0.5, "batch", "reference"),
        TopEntropy(),
        RandomShare(),
    )
    factors: list[dict[str, Any]] = [
        {},
        {"stare": STARE(target=9.0), "steer": STEER()},
        {"clip_b": ClipB(1.0), "clip_v": ClipV(2.0, 0.05)},
        {"repo_r": RepoR(), "erc": ERC(), "clip_b": ClipB()},
    ]
    ran = refused = 0
    for partitioner, chosen, correction in itertools.product(partitioners, lists, (None, TIS(), MIS())):
        for constraint in every_constraint(partitioner.parts):
            picked = {name: regularizers[name] for name in chosen}
            parts, weightings = (partitioner, constraint, picked), factors[(ran + refused) % len(factors)]
            refusal = None
            if constraint.per_response and (correction is not None or weightings or "shield" in chosen):
                refusal = "one ratio for a whole response"
            if constraint.starts_at_engine and correction is not None:
                refusal = "choose correction=none"
            if refusal is not None:
                with pytest.raises(ConfigError, match=refusal):
                    Objective(*parts, MEAN, correction, weightings)
                refused += 1
                continue
            objective = Objective(*parts, AGGREGATORS[sorted(AGGREGATORS)[ran % 3]], correction, weightings)
            loss = loss_of(objective, case, [slice(0, 4), slice(4, 6)], Step())
            (gradient,) = torch.autograd.grad(loss, case.logits)
            assert loss.isfinite()
            assert 0 < float(gradient.abs().max()) < 100
            ran += 1
    assert (ran, refused, ran + refused) == (705, 195, 5 * 12 * 15)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Objective(SinglePart(), ClipKL(LOW, HIGH), {}, MEAN),
            "constraint.clip_low is set for the parts knowledge, reasoning, but the partitioner makes all: give one "
            "number for all, or one for each of these",
        ),
        (
            lambda: Objective(SinglePart(), OnlyPart("reasoning", ClipKL()), {}, MEAN),
            "constraint.part=reasoning is not a part; the partitioner makes all",
        ),
        (
            lambda: OnlyPart("reasoning", GSPO()),
            "OnlyPart leaves out single tokens, but GSPO has one ratio for a whole response: choose a constraint with a "
            "ratio for each token",
        ),
        (
            lambda: Objective(SinglePart(), GMPO(), {"shield": LpReg(variant="reference")}, MEAN),
            "regularizer.shield takes single tokens out of the surrogate, but GMPO has one ratio for a whole response: "
            "choose a constraint with a ratio for each token",
        ),
        (
            lambda: Objective(SinglePart(), GSPO(), {}, MEAN, MIS()),
            "correction MIS weighs single tokens, but GSPO has one ratio for a whole response: choose "
            "correction.level=sequence or geometric, correction=none, or a constraint with a ratio for each token",
        ),
        (
            lambda: Objective(SinglePart(), GSPO(), {}, MEAN, None, {"repo_r": RepoR()}),
            "weighting.repo_r weighs single tokens, but GSPO has one ratio for a whole response: choose a constraint with a "
            "ratio for each token",
        ),
        (
            lambda: Objective(SinglePart(), OnlyPart("all", DPPO()), {}, MEAN, TIS()),
            "correction TIS weighs the gap between engine and trainer, which OnlyPart's ratio to the engine's policy spans "
            "already: choose correction=none",
        ),
        (
            lambda: Objective(RandomShare(), ClipKL(), {"reasoning": EntropyBonus()}, MEAN),
            "regularizer.reasoning: the name is taken by a part or a term; give it another",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == message
