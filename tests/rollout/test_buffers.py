"""Rows of a phase on disk: as they were, for any number of ranks, whole or not there."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_lightning.errors import CheckpointError, RolloutError
from rlvr_lightning.rollout import buffers
from rlvr_lightning.rollout.balance import assign
from rlvr_lightning.rollout.buffers import drop_buffers, load_buffer, save_buffer
from rlvr_lightning.rollout.checks import check_scored
from rlvr_lightning.types import Row


def row(prompt: int, sample: int, length: int, *, scored: bool = True) -> Row:
    generator = torch.Generator().manual_seed(1000 * prompt + sample)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.rand(length - 1, *shape, generator=generator)

    plain = Row(
        prompt,
        sample,
        torch.randint(100, (length,), generator=generator),
        numbers() < 0.7,
        numbers(),
        -numbers(),
        numbers(),
    )
    if not scored:
        return plain
    statistics = {"entropy": numbers(), "proxy_support(max>0.02,4)": numbers(2, 4).bfloat16()}
    return replace(plain, old_logprobs=-numbers(), ref_logprobs=-numbers(), old_statistics=statistics)


def same(one: Row, other: Row) -> bool:
    for item in fields(Row):
        mine, theirs = getattr(one, item.name), getattr(other, item.name)
        pairs = [(mine, theirs)]
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            pairs = [(mine[key], theirs[key]) for key in mine]
        for left, right in pairs:
            if isinstance(left, torch.Tensor):
                assert left.dtype == right.dtype
                assert torch.equal(left, right), item.name
            else:
                assert left == right, item.name
    return True


STEPS = [[row(0, 0, 7), row(0, 1, 2), row(2, 0, 31)], [row(1, 0, 5), row(3, 1, 12)]]


@pytest.mark.parametrize("scored", [True, False])
def test_rows_come_back_as_they_were(scored: bool, tmp_path: Path) -> None:
    steps = [[row(r.prompt_index, r.sample, len(r), scored=scored) for r in step] for step in STEPS]
    save_buffer(tmp_path, 8, steps, {"reward/mean": 0.1 + 0.2}, 0, 1)
    loaded, report = load_buffer(tmp_path, 8, 0, 1)
    assert report == {"reward/mean": 0.1 + 0.2}
    assert [len(step) for step in loaded] == [3, 2]
    assert all(
        same(*pair) for mine, theirs in zip(steps, loaded, strict=True) for pair in zip(mine, theirs, strict=True)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["buffer_8"]
    names = sorted(path.name for path in (tmp_path / "buffer_8").iterdir())
    assert names == ["rank_0_of_1.json", "rank_0_of_1.safetensors"]


def two_ranks(folder: Path) -> list[list[list[Row]]]:
    """A phase as two ranks keep it; the second has nothing of the second step."""
    parts = [STEPS, [[row(1, 1, 9), row(2, 1, 3), row(4, 0, 17)], []]]
    (folder / "buffer_4").mkdir()
    for rank, steps in enumerate(parts):
        buffers._write_part(folder / "buffer_4" / f"rank_{rank}_of_2", 4, steps, {"a": 1.0})
    return parts


def test_as_many_ranks_get_their_own_and_others_share_all_out(tmp_path: Path) -> None:
    parts = two_ranks(tmp_path)
    for rank in (0, 1):
        own, _ = load_buffer(tmp_path, 4, rank, 2)
        assert [[same(*pair) for pair in zip(*steps, strict=True)] for steps in zip(parts[rank], own, strict=True)]
    for ranks in (1, 3):
        shares = [load_buffer(tmp_path, 4, rank, ranks)[0] for rank in range(ranks)]
        for step in (0, 1):
            everything = sorted((r for part in parts for r in part[step]), key=lambda r: (r.prompt_index, r.sample))
            owners = assign([len(r) for r in everything], ranks, [r.prompt_index for r in everything])
            for rank in range(ranks):
                expected = [r for r, owner in zip(everything, owners, strict=True) if owner == rank]
                found = sorted(shares[rank][step], key=lambda r: (r.prompt_index, r.sample))
                assert all(same(*pair) for pair in zip(expected, found, strict=True))


def test_what_is_not_whole_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"buffer_4, with the responses .* is missing or not whole"):
        load_buffer(tmp_path, 4, 0, 1)
    two_ranks(tmp_path)
    (tmp_path / "buffer_4" / "rank_1_of_2.json").unlink()
    with pytest.raises(CheckpointError, match="is missing or not whole"):
        load_buffer(tmp_path, 4, 0, 1)
    save_buffer(tmp_path, 8, STEPS, {}, 0, 1)
    (tmp_path / "buffer_8" / "rank_0_of_1.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="buffer_8 cannot be read"):
        load_buffer(tmp_path, 8, 0, 1)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_buffer(tmp_path, 8, STEPS, {"a": 1.0}, 0, 1)

    def full(tensors: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(buffers, "save_file", full)
    with pytest.raises(RolloutError, match=r"could not be kept for going on in mid-epoch: .*No space left"):
        save_buffer(tmp_path, 8, STEPS[:1], {"a": 2.0}, 0, 1)
    assert load_buffer(tmp_path, 8, 0, 1)[1] == {"a": 1.0}


def test_buffers_go_when_no_checkpoint_needs_them(tmp_path: Path) -> None:
    for version in (0, 4, 8, 12):
        save_buffer(tmp_path, version, STEPS, {}, 0, 1)
    (tmp_path / ".buffer_2.partial").mkdir()
    (tmp_path / "notes.txt").touch()
    drop_buffers(tmp_path, {4}, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["buffer_12", "buffer_4", "notes.txt"]


def test_rows_scored_for_other_components_are_refused() -> None:
    from rlvr_lightning.config.build import build_module
    from rlvr_lightning.config.compose import compose
    from rlvr_lightning.models.source import ModelSource

    objective = build_module(compose(["conf=archer_lp_reg"]), ModelSource()).objective
    needed = {item.name: torch.zeros(6) for item in objective.requires if "rollout" in item.passes}
    scored = replace(STEPS[0][0], old_statistics=needed)
    check_scored([scored], objective)
    check_scored([], objective)
    with pytest.raises(CheckpointError, match="were scored without log-probabilities of the reference"):
        check_scored([replace(scored, ref_logprobs=None)], objective)
    with pytest.raises(CheckpointError, match=r"were scored without proxy_logprobs"):
        check_scored([replace(scored, old_statistics={"entropy": torch.zeros(6)})], objective)


def test_a_buffer_stays_as_long_as_a_complete_checkpoint_goes_on_from_it(tmp_path: Path) -> None:
    """Four optimizer steps a phase; one checkpoint lies in the middle of the phase drawn at 4, the best at its end."""
    from rlvr_lightning.callbacks.buffers import needed_buffers
    from rlvr_lightning.training import checkpoint_io as io

    def checkpoint(step: int, phase: int) -> Path:
        return io.write(tmp_path, step, {}, {"data": {"policy_version": step, "buffer_version": phase}})

    assert needed_buffers(tmp_path, 4) == (-1, set())
    checkpoint(4, 0)
    assert needed_buffers(tmp_path, 4) == (4, set())
    middle = checkpoint(6, 4)
    assert needed_buffers(tmp_path, 4) == (4, {4})
    # An older one in mid-epoch keeps its own, and the newest all since its phase began.
    checkpoint(16, 12)
    assert needed_buffers(tmp_path, 4) == (16, {4})
    checkpoint(17, 16)
    assert needed_buffers(tmp_path, 4) == (16, {4, 16})
    (middle / "state.json").write_text("torn")
    assert needed_buffers(tmp_path, 4) == (16, {16})
