"""What responses of a packed row have in common is computed once, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_attention import MODELS, folder, pass_of
from training import fit, weights

from rlvr_lightning.models.attention import BY_RESPONSE
from rlvr_lightning.models.packing import Packing
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.rollout.balance import assign
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.rollout.micro_batches import Budget, bins
from rlvr_lightning.rollout.sharing import twins
from rlvr_lightning.types import Row, TokenBatch


def row(*ids: int, index: int = 0, sample: int = 0, before: int = 1) -> Row:
    """A row whose first `before` tokens are its prompt."""
    mask = torch.arange(len(ids) - 1) >= before - 1
    generator = torch.Generator().manual_seed(100 * index + sample)
    values = torch.randn(len(mask), generator=generator)
    return Row(index, sample, torch.tensor(ids), mask, values * mask, -values.abs(), values.abs() / 9)


def groups(prompts: tuple[int, ...] = (12, 9), lengths: tuple[int, ...] = (28, 25, 25, 6, 3, 1)) -> list[Row]:
    """Two prompts with six responses each; two of each are the same, and two begin alike. The longest first."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, size in enumerate(prompts):
        prompt = torch.randint(3, 17, (size,), generator=generator).tolist()
        drawn = [torch.randint(3, 17, (length,), generator=generator).tolist() for length in lengths]
        # The third is the second once more, the fourth begins as it does.
        drawn[2], drawn[3] = drawn[1], drawn[1][:4] + drawn[3][4:]
        made += [row(*prompt, *response, index=index, sample=n, before=size) for n, response in enumerate(drawn)]
    return sorted(made, key=lambda one: -len(one))


def test_twins_by_hand() -> None:
    held = [row(7, 8, 9, 4, 5), row(7, 8, 9, 4, 6, 2), row(7, 8, 3), row(7, 8, 9, 4, 5), row(5, 8, 9)]
    given = twins(held)
    assert given is not None
    found, own = given.tolist(), list(range(sum(map(len, held))))
    token = torch.cat([one.token_ids for one in held]).tolist()
    starts = [0, 5, 11, 14, 19]
    before = {}
    for start, one in zip(starts, held, strict=True):
        for place in range(len(one)):
            before[start + place] = tuple(token[start : start + place + 1])
    # The same tokens up to there, always the same column of those that have them, which names itself.
    assert all(before[found[column]] == before[column] for column in own)
    assert all(found[found[column]] == found[column] for column in own)
    assert len(set(found)) == len(set(before.values())) == 5 + 2 + 1 + 0 + 3


def test_little_in_common_is_left_alone() -> None:
    alike = [row(1, *range(10, 17)), row(1, *range(20, 27))]
    assert twins(alike[:1]) is None
    assert twins([row(1, *range(10, 26)), row(1, *range(30, 46))]) is None
    assert twins([row(1, 2, 3, 4), row(1, 5, 6, 7)]) is not None
    assert collate(alike, 0, packed=False).twins is None


@pytest.mark.parametrize("name", sorted(MODELS))
def test_statistics_and_gradients_are_those_of_each_response_alone(name: str, tmp_path: Path) -> None:
    kind, settings = MODELS[name]
    source, held = folder(tmp_path, kind, **settings), groups()
    explicit, ours = Policy(ModelSource(source.path, attention="eager")), Policy(source)
    assert ours.attention == BY_RESPONSE
    expected = pass_of(explicit, [collate([one], 0, packed=False) for one in held])
    assert expected[1].abs().max() > 0.1
    ways = {"whole": [held], "cut": [held[:5], held[5:]]}
    for way, parts in ways.items():
        batches = [collate(part, 0, packed=True) for part in parts]
        assert all(batch.twins is not None for batch in batches)
        for found, there in zip(pass_of(ours, batches), expected, strict=True):
            torch.testing.assert_close(found, there, rtol=1e-3, atol=1e-4, msg=lambda text, way=way: f"{way}: {text}")
    # In any other order of the rows as well.
    mixed = collate(held[::-1], 0, packed=True)
    torch.testing.assert_close(pass_of(ours, [mixed])[1], expected[1], rtol=1e-3, atol=1e-4)


def computed(policy: Policy, batch: TokenBatch) -> int:
    """Columns that the first layer is given."""
    sizes = []
    hook = (
        policy.causal_lm.get_decoder()
        .layers[0]
        .register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    )
    policy(batch, 1.0)
    hook.remove()
    return int(sizes[0])


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_what_is_shared_is_computed_once(checkpointing: str, tmp_path: Path) -> None:
    source, held = folder(tmp_path, "llama"), groups()
    policy = Policy(ModelSource(source.path, gradient_checkpointing=checkpointing))
    batch = collate(held, 0, packed=True)
    every = {tuple(one.token_ids[:place].tolist()) for one in held for place in range(1, len(one) + 1)}
    assert computed(policy, batch) == len(every)
    assert len(every) < 0.6 * sum(map(len, held))
    assert computed(policy, replace(batch, twins=None)) == sum(map(len, held))
    assert computed(Policy(ModelSource(source.path, attention="eager")), batch) == sum(map(len, held))
    for found, there in zip(pass_of(policy, [batch]), pass_of(policy, [replace(batch, twins=None)]), strict=True):
        torch.testing.assert_close(found, there, rtol=1e-3, atol=1e-4)


def test_positions_of_what_is_computed_are_those_in_its_response() -> None:
    batch = collate([row(7, 8, 9, 4, 5), row(7, 8, 9, 6), row(7, 2, 3)], 0, packed=True)
    packing = Packing.of(batch, shares=True)
    ids, places = packing.shrink(batch.input_ids), packing.shrink(packing.positions(batch.input_ids))
    together = sorted(zip(places[0].tolist(), ids[0].tolist(), strict=True))
    assert together == [(0, 7), (1, 2), (1, 8), (2, 3), (2, 9), (3, 4), (3, 6), (4, 5)]
    spread = packing.spread(ids.unsqueeze(-1).float())
    assert torch.equal(spread[0, :, 0].long(), batch.input_ids[0])


def test_responses_of_a_prompt_stay_together() -> None:
    lengths, prompts = [10] * 12, [0, 1, 2] * 4
    assert bins(lengths, Budget(40), prompts=prompts) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    # In halves where they do not fit whole, and alone at last.
    assert sorted(map(sorted, bins(lengths, Budget(20), prompts=prompts))) == [
        [0, 3],
        [1, 4],
        [2, 5],
        [6, 9],
        [7, 10],
        [8, 11],
    ]
    assert len(bins(lengths, Budget(10), prompts=prompts)) == 12
    assert bins(lengths, Budget(1000, rows=5), prompts=prompts) == bins(lengths, Budget(40), prompts=prompts)
    # The longest stands first in each.
    assert bins([3, 5, 4], Budget(20), prompts=[0, 0, 0]) == [[1, 2, 0]]


def test_a_prompt_has_one_rank_where_that_is_even() -> None:
    lengths, prompts = [10] * 8, [0, 1, 2, 3] * 2
    owners = assign(lengths, 2, prompts)
    assert owners[:4] == owners[4:]
    assert sorted(owners) == [0] * 4 + [1] * 4
    # One prompt for two ranks: half of it each. Uneven ones: as even as rows can be.
    assert sorted(assign(lengths, 2, [0] * 8)) == [0] * 4 + [1] * 4
    lengths, prompts = [100, 90, 80, 10, 10, 10], [0, 0, 0, 1, 1, 1]
    assert assign(lengths, 2, prompts) == assign(lengths, 2) == [0, 1, 1, 0, 0, 0]
    # One in a hundred more than the mean is not worth parting them, three are.
    assert assign([51, 50, 50, 51], 2, [0, 1, 1, 0]) == [0, 1, 1, 0]
    assert assign([103, 97, 97, 103], 2, [0, 1, 1, 0]) == assign([103, 97, 97, 103], 2) == [0, 0, 1, 1]


def test_a_run_learns_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = (
        "conf=archer_lp_reg",
        "rollout.prompts_per_step=4",
        "rollout.packing=true",
        "trainer.micro_batch_tokens=120",
    )
    shared = weights(fit(tmp_path / "shared", *common))
    seen = []

    def nothing(rows: list[Row]) -> None:
        seen.append(twins(rows))

    monkeypatch.setattr("rlvr_lightning.rollout.batching.twins", nothing)
    apart = weights(fit(tmp_path / "apart", *common))
    assert any(one is not None for one in seen)
    assert (shared - apart).abs().max() < 2e-4
