"""What is logged of the tokens, against formulas written out token by token; over cuts, ranks and real runs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training import drawn, fit

from rlvr_lightning.evaluation.diagnostics import Diagnostics
from rlvr_lightning.evaluation.metrics import ProbabilityHistogram, QuadrantTable
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.joining import cut, join
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.types import StepPlan, TokenStats

ROWS, LENGTH, VOCABULARY = 8, 7, 12
PARTS = ("knowledge", "reasoning")
QUADRANTS = ("positive_likely", "positive_rare", "negative_likely", "negative_rare")
EDGES = (0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
RHO, KAPPA = 0.6, 0.1
CUTS = ([ROWS], [1, ROWS], [3, 4, 7, ROWS])


def objective(variant: Any = "paper") -> Objective:
    constraint = ClipKL(0.1, 0.2, kl_coef=0.05)
    regularizers = {"shield": LpReg(RHO, KAPPA, variant=variant), "cov": KLCov(0.2)}
    return Objective(EntropyQuantile(0.7, "batch"), constraint, regularizers, TokenMean())


def logits_and_ids(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Current and old logits, sampled tokens: some of them improbable ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
    old = logits + 0.4 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    # Half of them drawn, half of them anything.
    drawn = torch.multinomial(old.softmax(-1).flatten(0, 1), 1, generator=generator).view(ROWS, LENGTH)
    anything = torch.randint(VOCABULARY, drawn.shape, generator=generator)
    return logits, old, torch.where(torch.rand(drawn.shape, generator=generator) < 0.5, drawn, anything)


def make_stats(built: Objective, seed: int = 0) -> TokenStats:
    """Off-policy statistics of ragged responses; one has no advantage and one no weight."""
    logits, old, ids = logits_and_ids(seed)
    mask = torch.arange(LENGTH) < torch.tensor([7, 3, 5, 1, 6, 7, 2, 4]).unsqueeze(-1)
    mask[6] = False
    advantages = torch.tensor([1.3, -0.7, 0.0, 0.4, -1.1, -0.2, 2.0, 0.9], dtype=torch.float64)

    def of(values: Tensor, when: str, before: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        statistics = [statistic for statistic in (*built.requires, EntropyFlow()) if when in statistic.passes]
        return token_stats(values, ids, mask, lambda x: x, 1.0, statistics, before)

    old_logprobs, old_statistics = of(old, "rollout")
    logprobs, statistics = of(logits, "update", old_statistics)
    return TokenStats(
        logprobs,
        old_logprobs,
        advantages.unsqueeze(-1).expand(mask.shape),
        mask,
        rollout_logprobs=old_logprobs + 0.01,
        ref_logprobs=old_logprobs - 0.3,
        statistics=statistics,
        old_statistics=old_statistics,
    )


def rows_of(stats: TokenStats, rows: slice) -> TokenStats:
    changes: dict[str, Any] = {}
    for item in fields(stats):
        value = getattr(stats, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = value[rows]
        elif isinstance(value, dict):
            changes[item.name] = {key: tensor[rows] for key, tensor in value.items()}
    return replace(stats, **changes)


def observed(built: Objective, stats: TokenStats, cuts: Sequence[int]) -> Diagnostics:
    """What was seen of the rows in micro-batches that end at `cuts`."""
    diagnostics = Diagnostics(built)
    micros = [rows_of(stats, slice(*ends)) for ends in pairwise([0, *cuts])]
    for micro, plan in zip(micros, cut(built.plan(join(micros), Step()), micros), strict=True):
        diagnostics.observe(micro, built(micro, plan), plan)
    return diagnostics


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def quantile(values: Sequence[float], q: float) -> float:
    ordered, position = sorted(values), q * (len(values) - 1)
    below = math.floor(position)
    return ordered[below] + (position - below) * (ordered[min(below + 1, len(values) - 1)] - ordered[below])


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def expected(stats: TokenStats, variant: str) -> dict[str, float]:
    """Every number of the epoch, from the logits."""
    logits, old_logits, ids = (values.tolist() for values in logits_and_ids())
    tokens = []
    for i, t in stats.loss_mask.nonzero().tolist():
        p, old, sampled = softmax(logits[i][t]), softmax(old_logits[i][t]), ids[i][t]
        entropy = -sum(x * math.log(x) for x in p)
        phi = [x * (math.log(x) + entropy) for x in p]
        advantage = float(stats.advantages[i, t])
        change = -advantage * (phi[sampled] - sum(x * y for x, y in zip(p, phi, strict=True)))
        sign = "positive" if advantage > 0 else "negative"
        rare = "rare" if -math.log(p[sampled]) > entropy else "likely"
        kept = sum(x for x in old if x > KAPPA * max(old))
        tokens.append(
            {
                "p": p[sampled],
                "old": old[sampled],
                "entropy": entropy,
                "old_entropy": -sum(x * math.log(x) for x in old),
                "change": change,
                "advantage": advantage,
                "quadrant": f"{sign}_{rare}" if advantage else "",
                "ratio": p[sampled] / old[sampled],
                "kl_old": old[sampled] / p[sampled] - math.log(old[sampled] / p[sampled]) - 1,
                "dropped": old[sampled] <= KAPPA * max(old),
                "proxy": old[sampled] / kept,
            }
        )
    named: dict[str, float] = {}
    edge = quantile([token["old_entropy"] for token in tokens], 0.7)
    parts = {PARTS[0]: [x for x in tokens if x["old_entropy"] < edge - 1e-12]}
    parts[PARTS[1]] = [x for x in tokens if x not in parts[PARTS[0]]]
    for kind in ("ratio", "kl_old", "entropy"):
        named[f"policy/{kind}"] = mean([x[kind] for x in tokens])
        named |= {f"policy/{kind}/{part}": mean([x[kind] for x in own]) for part, own in parts.items()}
    for quadrant in QUADRANTS:
        own = [x for x in tokens if x["quadrant"] == quadrant]
        assert own, quadrant
        named[f"policy/quadrant_share/{quadrant}"] = len(own) / len(tokens)
        named[f"policy/quadrant_flow/{quadrant}"] = sum(x["change"] for x in own) / len(tokens)
    named["policy/entropy_flow"] = mean([x["change"] for x in tokens])
    for lower, upper in zip(EDGES, (*EDGES[1:], 2), strict=True):
        named[f"policy/prob_hist/{lower:g}"] = mean([lower <= x["p"] < upper for x in tokens])
    negative = [x for x in tokens if x["advantage"] < 0]
    if variant == "paper":
        threshold = quantile([x["old"] for x in tokens], RHO)
        low = [x for x in negative if x["old"] < threshold]
        sparks = sum(not x["dropped"] for x in low)
    else:
        low = sorted(negative, key=lambda x: x["p"])[: int(len(negative) * RHO)]
        sparks = sum(not x["dropped"] and x["p"] < x["proxy"] for x in low)
    noise = sum(x["dropped"] for x in low)
    assert min(sparks, noise) > 1
    named |= {"policy/shield/sparks": sparks, "policy/shield/noise": noise}
    return named | {"policy/tokens_in/shield": sparks / len(tokens)}


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_every_number_by_hand_however_the_step_is_cut(variant: str, cuts: list[int]) -> None:
    built = objective(variant)
    stats = make_stats(built)
    diagnostics = observed(built, stats, cuts)
    logged = diagnostics.drain()
    for name, value in expected(stats, variant).items():
        assert logged[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    # What chooses tokens without marking any is only a share.
    assert logged["policy/tokens_in/cov"] > 0
    assert not [name for name in logged if name.startswith("policy/cov/")]
    assert diagnostics.drain() == {"policy/skipped_steps": 0.0, "policy/idle_steps": 0.0}


def test_quadrants_add_up_to_the_flow_and_bins_to_one() -> None:
    built = objective()
    logged = observed(built, make_stats(built, seed=3), CUTS[2]).drain()
    flows = [logged[f"policy/quadrant_flow/{quadrant}"] for quadrant in QUADRANTS]
    assert sum(flows) == pytest.approx(logged["policy/entropy_flow"], rel=1e-12)
    # A rare token's flow has the sign of its advantage.
    assert flows[1] > 0 > flows[3]
    shares = [value for name, value in logged.items() if name.startswith("policy/prob_hist/")]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("advantage", [1.7, -0.6])
@pytest.mark.parametrize("token", [0, 2, 5])
def test_the_flow_is_the_finite_difference_of_the_entropy(token: int, advantage: float) -> None:
    logits = torch.tensor([2.0, -1.0, 0.3, 0.1, -3.0, -2.0], dtype=torch.float64)

    def entropy(values: Tensor) -> float:
        return float(torch.special.entr(values.softmax(-1)).sum())

    step = 1e-6
    direction = advantage * (torch.nn.functional.one_hot(torch.tensor(token), 6) - logits.softmax(-1))
    difference = (entropy(logits + step * direction) - entropy(logits - step * direction)) / (2 * step)
    built = Objective(SinglePart(), ClipKL(), {}, TokenMean())
    mask, ids = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[token]])
    logprobs, statistics = token_stats(logits.view(1, 1, 6), ids, mask, lambda x: x, 1.0, [Entropy(), EntropyFlow()])
    advantages = torch.full((1, 1), advantage, dtype=torch.float64)
    stats = TokenStats(logprobs, logprobs, advantages, mask, statistics=statistics, old_statistics=statistics)
    flow = observed(built, stats, [1]).drain()["policy/entropy_flow"]
    assert flow == pytest.approx(difference, rel=1e-6)
    assert abs(flow) > 1e-3


def test_tables_are_of_the_steps_they_are_asked_for() -> None:
    built = Objective(EntropyQuantile(), ClipKL(), {}, TokenMean())
    stats = make_stats(built)
    plan = built.plan(stats, Step())
    without = replace(stats, statistics={"entropy": stats.statistics["entropy"]})
    quiet, mixed, full = Diagnostics(built), Diagnostics(built), observed(built, stats, [ROWS])
    for diagnostics in (quiet, mixed):
        diagnostics.observe(without, built(without, plan), plan, tables=False)
    mixed.observe(stats, built(stats, plan), plan, tables=True)
    tables = ("policy/quadrant", "policy/prob_hist", "policy/entropy_flow")
    none, some, all_of_them = (
        {name: value for name, value in one.drain().items() if name.startswith(tables)} for one in (quiet, mixed, full)
    )
    assert none == {}
    assert len(some) == 4 + 4 + 10 + 1
    assert some == all_of_them
    # An epoch that is gone on with still knows of the tables it has.
    mixed.observe(stats, built(stats, plan), plan, tables=True)
    resumed = Diagnostics(built)
    resumed.resume([mixed.sums()], 0, 1)
    assert resumed.drain() == mixed.drain()
    # Of a step without a token that carries weight there is none, whatever the others have.
    resumed.observe(without, built(without, plan), plan, tables=False)
    nothing = replace(stats, loss_mask=torch.zeros_like(stats.loss_mask))
    void = built.plan(nothing, Step())
    resumed.observe(nothing, built(nothing, void), void, tables=True)
    assert not any(name.startswith(tables) for name in resumed.drain())


def test_bins_end_at_their_edges_and_sort_as_text() -> None:
    metric = ProbabilityHistogram()
    assert list(metric.bins) == sorted(metric.bins) == [f"{edge:g}" for edge in EDGES]
    edges = torch.tensor(EDGES)
    # 0 itself, each edge from both sides, 1, one that rounding lifted above it, and one that is not to be looked at.
    logprobs = torch.cat([edges[:1], edges[1:] * (1 - 1e-5), edges[1:] * (1 + 1e-5), torch.ones(3)]).log()
    logprobs[-2:] = torch.tensor([1e-6, torch.nan])
    mask = torch.arange(len(logprobs)) < len(logprobs) - 1
    metric.update(logprobs[None], mask[None])
    assert metric.counts.tolist() == [2] * 9 + [3]
    assert metric.compute().tolist() == pytest.approx([2 / 21] * 9 + [3 / 21])


def test_a_quadrant_needs_a_sign_and_masked_rubbish_is_not_looked_at() -> None:
    metric = QuadrantTable()
    advantages, mask = torch.tensor([[0.0, 1.0, torch.nan]]), torch.tensor([[True, True, False]])
    rubbish = torch.tensor([[-1.0, -1.0, torch.nan]])
    metric.update(advantages, rubbish, torch.ones(1, 3), rubbish, mask)
    shares, flows = metric.compute().tolist()
    # A surprisal that equals the entropy is likely.
    assert shares == [0.5, 0, 0, 0]
    assert flows == [-0.5, 0, 0, 0]


def test_nothing_is_logged_of_rows_without_weight() -> None:
    built = objective()
    stats = make_stats(built)
    logged = observed(built, replace(stats, loss_mask=torch.zeros_like(stats.loss_mask)), CUTS[1]).drain()
    assert {name.split("/")[1] for name in logged} == {"loss", "skipped_steps", "idle_steps"}
    assert all(value == 0 for value in logged.values())


class Waits(TorchDispatchMode):
    """Collects the calls that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_to_copy"):
            source = args[0]
            target = (kwargs or {}).get("device")
            if func.overloadpacket.__name__ != "_to_copy" or (target is not None and target != source.device):
                self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_observing_does_not_wait_for_the_device() -> None:
    built = objective()
    stats = make_stats(built)
    plan = built.plan(stats, Step())
    output, diagnostics = built(stats, plan), Diagnostics(built)
    with Waits() as waits:
        assert float(stats.logprobs.sum()) < 0
    assert waits.calls == ["aten._local_scalar_dense.default"]
    with Waits() as waits:
        diagnostics.observe(stats, output, plan)
    assert waits.calls == []


def half(built: Objective, stats: TokenStats, plan: StepPlan, rows: slice, diagnostics: Diagnostics) -> Diagnostics:
    micro = rows_of(stats, rows)
    held = {name: {key: value[rows] for key, value in getattr(plan, name).items()} for name in ("choices", "masks")}
    part = replace(plan, part_ids=plan.part_ids[rows], **held)
    diagnostics.observe(micro, built(micro, part), part)
    return diagnostics


def test_sums_go_through_a_checkpoint_as_they_were() -> None:
    """Observed, saved as text and gone on with is observed at once, to the last bit; so too by another number of ranks."""
    built = objective()
    stats = make_stats(built)
    plan = built.plan(stats, Step())
    whole, first = Diagnostics(built), Diagnostics(built)
    for diagnostics in (whole, first):
        half(built, stats, plan, slice(0, 3), diagnostics)
        diagnostics.observe_step(torch.tensor(0.1))
        diagnostics.observe_step(torch.tensor(torch.inf))
    saved = json.loads(json.dumps(first.sums(), allow_nan=False))
    again = Diagnostics(built)
    again.resume([saved], 0, 1)
    for diagnostics in (whole, again):
        half(built, stats, plan, slice(3, ROWS), diagnostics)
        diagnostics.observe_step(torch.tensor(0.7))
    expected = whole.drain()
    assert again.drain() == expected
    assert expected["policy/skipped_steps"] == 1
    assert expected["policy/grad_norm"] == pytest.approx(0.4)
    # Two ranks' sums on one, and one's on the first of two.
    other = half(built, stats, plan, slice(3, ROWS), Diagnostics(built))
    for norm in (0.1, torch.inf):
        other.observe_step(torch.tensor(norm))
    alone, idle = Diagnostics(built), Diagnostics(built)
    alone.resume([saved, other.sums()], 0, 1)
    idle.resume([saved], 1, 2)
    alone.observe_step(torch.tensor(0.7))
    taken = alone.drain()
    assert taken.keys() == expected.keys()
    for name, value in expected.items():
        assert taken[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
    assert idle.sums()["steps"] == saved["steps"]
    counts = {"policy/skipped_steps": 1.0, "policy/idle_steps": 0.0}
    assert idle.drain() == {**counts, "policy/grad_norm": pytest.approx(0.1)}
    with_max = Diagnostics(built)
    with_max.resume([{**saved, "gap": [0.5]}, saved], 0, 1)
    assert with_max.sums()["gap"] == [0.5]


def rank(index: int, folder: str) -> None:
    """One of two processes, with rows and micro-batches of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=2)
    built = objective()
    stats = rows_of(make_stats(built), slice(0, 3) if index == 0 else slice(3, ROWS))
    diagnostics = observed(built, stats, [1, 3] if index == 0 else [2, 3, 5])
    diagnostics.observe_step(torch.tensor(0.5))
    torch.save(diagnostics.drain(), f"{folder}/{index}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_log_what_one_process_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    built = objective()
    diagnostics = observed(built, make_stats(built), CUTS[0])
    diagnostics.observe_step(torch.tensor(0.5))
    alone = diagnostics.drain()
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in (0, 1))
    assert first == second
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
    for name in ("policy/shield/sparks", "policy/shield/noise"):
        assert first[name] == alone[name] > 1


def test_a_real_run_logs_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rho = 0.05
    counted: list[tuple[int, int]] = []
    observe = Diagnostics.observe

    def recording(
        self: Diagnostics, stats: TokenStats, output: LossOutput, plan: StepPlan, *, tables: bool = True
    ) -> None:
        observe(self, stats, output, plan, tables=tables)
        (proxy,) = [value for name, value in stats.old_statistics.items() if name.startswith("proxy_logprobs")]
        probabilities = stats.old_logprobs.exp()
        threshold = torch.quantile(probabilities[stats.loss_mask], rho)
        low = stats.loss_mask & (stats.advantages < 0) & (probabilities < threshold)
        counted.append((int((low & proxy.isfinite()).sum()), int((low & proxy.isneginf()).sum())))
        assert int((plan.choices["lp_reg"] == 2).sum()) == counted[-1][1]

    monkeypatch.setattr(Diagnostics, "observe", recording)
    settings = ("conf=lp_reg", f"regularizer.lp_reg.quantile={rho}", "regularizer.lp_reg.threshold=0.1")
    settings += ("trainer.max_epochs=3", "trainer.diagnostics_every_n_steps=2")
    with drawn():
        fit(tmp_path, *settings)
    with (tmp_path / "logs" / "metrics.csv").open() as lines:
        epochs = [row for row in csv.DictReader(lines) if row["policy/entropy"]]
    assert len(epochs) == len(counted) == 3
    assert not any(value for name, value in epochs.pop(1).items() if name.startswith(("policy/quad", "policy/prob")))
    for row, (sparks, noise) in zip(epochs, counted[::2], strict=True):
        found = {name: float(value) for name, value in row.items() if name.startswith("policy/") and value}
        assert (found["policy/lp_reg/sparks"], found["policy/lp_reg/noise"]) == (sparks, noise)
        assert min(sparks, noise) > 0
        shares = [value for name, value in found.items() if name.startswith("policy/prob_hist/")]
        assert sum(shares) == pytest.approx(1, abs=1e-6)  # logged in float32
        assert found["policy/prob_hist/0.99"] > 0.5
        assert 0 < sum(found[f"policy/quadrant_share/{quadrant}"] for quadrant in QUADRANTS) <= 1 + 1e-6
        flows = [found[f"policy/quadrant_flow/{quadrant}"] for quadrant in QUADRANTS]
        assert sum(flows) == pytest.approx(found["policy/entropy_flow"], abs=1e-6)
        assert found["policy/entropy"] == found["policy/entropy/all"] > 0
        assert found["policy/ratio/all"] == 1
        assert found["policy/kl_old/all"] == 0
    assert (tmp_path / "curves.png").stat().st_size > 0
