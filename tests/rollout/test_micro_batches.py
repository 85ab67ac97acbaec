"""Tokens, not rows: what a step computes is hardly more than what it holds, and every rank has as much of it to do."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.rollout.balance import assign, cost
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.rollout.micro_batches import Budget, Layout, bins, sorted_by_length
from rlvr_lightning.types import Row, StepBatch

BUDGET = 65536


def log_normal_lengths(number: int, seed: int, scale: int = 1) -> list[int]:
    """Prompt and response: 9k response tokens in the mean, cut at 32k, after a prompt of up to 2k."""
    generator = torch.Generator().manual_seed(seed)
    responses = torch.exp(8.8 + 0.8 * torch.randn(4 * number, generator=generator)).clamp(1, 32768)
    prompts = torch.randint(64, 2048, (4 * number,), generator=generator)
    assert responses.mean().item() == pytest.approx(9000, rel=0.05)
    return [max(2, int(length) // scale) for length in (responses + prompts)[:number]]


def row(index: int, length: int, *, weight: bool = True) -> Row:
    values = torch.arange(length - 1) / length
    mask = torch.full((length - 1,), weight)
    return Row(index, 0, torch.arange(length) % 7, mask, values, -values, values / 2)


def computed(step: StepBatch) -> int:
    return sum(micro.input_ids.numel() for micro in step.micros)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("packed", "most"), [(True, 1.05), (False, 1.2)])
def test_a_step_of_log_normal_lengths_computes_little_more_than_its_tokens(
    packed: bool, most: float, seed: int
) -> None:
    scale = 64
    rows = [row(index, length) for index, length in enumerate(log_normal_lengths(512, seed, scale))]
    layout = Layout(Budget(BUDGET // scale), 0, packed)
    step = layout.laid_out(layout.cut(rows))
    real = sum(map(len, rows))
    assert computed(step) <= most * real
    assert all(micro.input_ids.numel() <= BUDGET // scale for micro in step.micros)
    # Nothing is lost on the way.
    assert sum(int(micro.loss_mask.sum()) for micro in step.micros) == real - len(rows)
    # As one block, which the micro-batches of a padded step were cut from, it was several times as much.
    assert len(rows) * max(map(len, rows)) > 3 * real


@pytest.mark.parametrize("packed", [True, False])
def test_two_ranks_have_as_much_to_do_in_as_many_micro_batches(packed: bool) -> None:
    lengths = log_normal_lengths(512, 7)
    # The first half of a step is the first rank's: what it drew may be far longer.
    lengths = sorted(lengths, reverse=True)
    owners = assign(lengths, 2)
    shares = [[length for length, owner in zip(lengths, owners, strict=True) if owner == rank] for rank in range(2)]
    costs = [sum(map(cost, share)) for share in shares]
    assert max(costs) / min(costs) < 1.001
    assert sum(map(cost, lengths[:256])) / sum(map(cost, lengths[256:])) > 3
    lay_out = bins if packed else sorted_by_length
    numbers = [len(lay_out(share, Budget(BUDGET))) for share in shares]
    assert max(numbers) - min(numbers) <= 1
    for share in shares:
        micros = lay_out(share, Budget(BUDGET), max(numbers))
        assert len(micros) == max(numbers)
        sizes = [sum(share[i] for i in m) if packed else len(m) * max(share[i] for i in m) for m in micros if m]
        assert max(sizes) <= BUDGET
        assert sum(sizes) <= (1.05 if packed else 1.2) * sum(share)


def test_micro_batches_by_hand() -> None:
    lengths = [5, 9, 2, 9, 4, 30]
    assert sorted_by_length(lengths, Budget(20)) == [[5], [1, 3], [0, 4, 2]]
    assert sorted_by_length(lengths, Budget(20, rows=1)) == [[5], [1], [3], [0], [4], [2]]
    assert sorted_by_length(lengths, Budget(20), least=5) == [[5], [1, 3], [0, 4, 2], [], []]
    assert bins(lengths, Budget(20)) == [[5], [1, 0], [3, 4, 2]]
    assert bins(lengths, Budget(60)) == [[5, 1, 3, 0, 4, 2]]
    assert bins(lengths, Budget(60, rows=2)) == [[5, 2], [1, 0], [3, 4]]
    assert bins([3], Budget(9), least=3) == [[0], [], []]
    assert bins([], Budget(9)) == [[]]


@pytest.mark.parametrize("packed", [True, False])
def test_rows_without_weight_are_left_out_and_their_order_does_not_matter(packed: bool) -> None:
    # In pairs of one length, so that the order of what is equal could tell.
    rows = [row(index, 3 + index // 4, weight=index % 3 > 0) for index in range(9)]
    layout = Layout(Budget(20), 0, packed)
    micros = layout.cut(rows)
    assert sorted(one.prompt_index for one in chain(*micros)) == [1, 2, 4, 5, 7, 8]
    assert [[one.prompt_index for one in micro] for micro in layout.cut(rows[::-1])] == [
        [one.prompt_index for one in micro] for micro in micros
    ]
    (idle,) = layout.laid_out(layout.cut(rows[::3])).micros
    assert torch.equal(idle.input_ids, collate([], 0, packed=packed).input_ids)


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_scored_comes_back_to_all_rows_that_carry_weight(packed: bool) -> None:
    rows = [row(index, 3 + index, weight=index != 4) for index in range(9)]
    layout = Layout(Budget(20), 0, packed)
    scored = layout.scored(rows, lambda micro: replace(micro, ref_logprobs=micro.targets.float()))
    assert sorted(one.prompt_index for one in scored) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert all(torch.equal(one.ref_logprobs, one.token_ids[1:].float()) for one in scored)  # type: ignore[arg-type]


@pytest.mark.parametrize(("budget", "name"), [((0, None), "tokens"), ((9, 0), "size")])
def test_a_budget_of_nothing_is_refused(budget: tuple[int, int | None], name: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.micro_batch_{name} must be at least 1; got 0"):
        Budget(*budget)
