"""What is read of a step's rarest tokens alone is made of them, whichever part of the step is looked at, and of few others."""

from __future__ import annotations

import pytest
import torch
from objectives import MEAN, OBJECTIVES
from torch import nn

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxyLogprob
from rlvr_lightning.methods.regularizers.proxy_kl import ProxyKL
from rlvr_lightning.objective.statistics import Entropy, merge_statistics
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.protocols import VocabStatistic

V, H = 11, 5
FILTER = Filter(0.1, "relative")


def scored(hidden: torch.Tensor, share: float | None, step_tokens: int | None, rows: int) -> dict[str, torch.Tensor]:
    """Log-probabilities and what Lp-Reg reads, of tokens whose ids are their places modulo V."""
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=False, dtype=torch.float64)
    ids = torch.arange(hidden.shape[1]).unsqueeze(0) % V
    wanted: list[VocabStatistic] = [Entropy(), ProxyLogprob(FILTER, rarest=share), ProxyKL(FILTER, 3, rarest=share)]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        logprobs, named = token_stats(hidden, ids, mask, head, 1.0, wanted, None, rows * V, step_tokens=step_tokens)
    return {"logprobs": logprobs[0], **{name: values[0] for name, values in named.items()}}


@pytest.mark.parametrize("rows", [1, 7, 1000], ids=["token by token", "chunks", "at once"])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("part", [110, 44, 11, 1])
def test_whatever_may_be_chosen_is_there(part: int, share: float, rows: int) -> None:
    for seed in range(10):
        hidden = 2 * torch.randn(1, 110, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        probs = scored(hidden, None, None, rows)["logprobs"].exp()
        below = probs < torch.quantile(probs, share)
        whole = scored(hidden[:, :part], None, None, rows)
        found = scored(hidden[:, :part], share, 110, rows)
        for name, values in whole.items():
            there = ~found[name].isnan()
            assert torch.equal(found[name][there], values[there])
            assert there[below[:part]].all()
            assert there.all() or name.startswith("proxy")


def test_it_is_made_of_few_others() -> None:
    hidden = torch.randn(1, 1100, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = scored(hidden, 0.01, 1100, 1000)
    for name in found.keys() - {"logprobs", "entropy"}:
        # ceil(0.01 * 1099) + 1 of the first thousand, those of the last hundred that are as rare, and some that nearly are.
        assert 12 <= int((~found[name].isnan()).sum()) <= 20
    # Without a step to compare with, or where all are asked for, of every token.
    for share, tokens in ((0.01, None), (None, 1100)):
        assert not any(values.isnan().any() for values in scored(hidden, share, tokens, 1000).values())


def test_of_two_shares_the_larger_serves_both() -> None:
    narrow, wide, every = (ProxyLogprob(FILTER, rarest=share) for share in (0.01, 0.05, None))
    assert merge_statistics([narrow, wide]) == merge_statistics([wide, narrow]) == (wide,)
    assert merge_statistics([every, wide]) == merge_statistics([wide, every]) == (every,)


@pytest.mark.parametrize("name", ["lp_reg", "shield"])
def test_a_driven_quantile_is_the_share(name: str) -> None:
    objective = OBJECTIVES[name](MEAN)
    (regularizer,) = objective.regularizers.values()
    regularizer.quantile = 0.4  # type: ignore[attr-defined]
    assert {one.rarest for one in objective.requires if isinstance(one, (ProxyLogprob, ProxyKL))} == {0.4}
