"""The rows of a rollout phase on disk, for going on in the middle of its epoch with any number of ranks.

`buffers/buffer_V/` holds the phase drawn at policy version V: of each rank that drew it `rank_R_of_W.safetensors`, where
the rows' tensors lie one after another, and `rank_R_of_W.json`, which says whose they are. A folder of that name is
whole. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvr_lightning.errors import CheckpointError, RolloutError
from rlvr_lightning.rollout.balance import assign
from rlvr_lightning.rollout.files import sync_folder, write_whole
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.types import Row

FIELDS = ("token_ids", "loss_mask", "advantages", "rollout_logprobs", "noise", "old_logprobs", "ref_logprobs")
STATISTIC = "old_statistics/"


def buffer_folder(buffers: Path, version: int) -> Path:
    """Where the phase drawn at policy version `version` lies."""
    return buffers / f"buffer_{version}"


def save_buffer(
    buffers: Path, version: int, steps: Sequence[Sequence[Row]], report: Mapping[str, float], rank: int, ranks: int
) -> None:
    """Keep a phase. Every rank must call it with its own rows.

    Args:
        buffers: the run's folder of them.
        version: of the policy the phase was drawn from.
        steps: this rank's scored rows of each optimizer step of one pass.
        report: what is logged of the phase.
        rank: this one.
        ranks: how many there are.

    Raises:
        RolloutError: a rank could not write its part; what was there before is as it was.
    """
    target, partial = buffer_folder(buffers, version), buffers / f".buffer_{version}.partial"
    _together(lambda: _make_anew(partial), alone=True, rank=rank)
    _together(lambda: _write_part(partial / f"rank_{rank}_of_{ranks}", version, steps, report), rank=rank)

    def put_in_place() -> None:
        sync_folder(partial)
        shutil.rmtree(target, ignore_errors=True)  # drawn once before, in a session that did not get far
        partial.rename(target)
        sync_folder(buffers)

    _together(put_in_place, alone=True, rank=rank)


def load_buffer(buffers: Path, version: int, rank: int, ranks: int) -> tuple[list[list[Row]], dict[str, float]]:
    """This rank's rows of each optimizer step, and the report, of the phase drawn at `version`.

    As many ranks as drew it get what they had; with another number all rows are shared out anew, as if so many had drawn
    them.

    Raises:
        CheckpointError: they are not there, or not whole.
    """
    folder = buffer_folder(buffers, version)
    parts = sorted(folder.glob("rank_*.json"), key=lambda path: int(path.name.split("_")[1]))
    if not parts or len(parts) != int(parts[0].stem.rpartition("_")[2]):
        raise CheckpointError(
            f"cannot go on in the middle of an epoch: {folder}, with the responses the checkpoint was learning from, is "
            "missing or not whole"
        )
    try:
        heads: list[dict[str, Any]] = [json.loads(path.read_text()) for path in parts]
        if len(parts) == ranks:
            chosen = [list(range(len(head["rows"]))) if place == rank else [] for place, head in enumerate(heads)]
        else:
            chosen = _shared_out(heads, rank, ranks)
        steps: list[list[Row]] = [[] for _ in range(heads[0]["steps"])]
        for path, head, places in zip(parts, heads, chosen, strict=True):
            for step, row in _rows(path.with_suffix(".safetensors"), head["rows"], places):
                steps[step].append(row)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot go on in the middle of an epoch: {folder} cannot be read: {error}") from error
    return steps, heads[0]["report"]


def drop_buffers(buffers: Path, keep: set[int], since: int) -> None:
    """Remove the phases drawn before policy version `since`, but for `keep`, and what was never finished of them."""
    for path in (*buffers.glob("buffer_*"), *buffers.glob(".buffer_*.partial")):
        version = int(path.name.removesuffix(".partial").rpartition("_")[2])
        if path.is_dir() and version < since and version not in keep:
            shutil.rmtree(path)


def _together(work: Any, *, rank: int, alone: bool = False) -> None:
    """Let every rank (`alone`: the first) do its part; all learn of a failure, and none waits for one that failed."""
    told: list[str] = []
    if rank == 0 or not alone:
        try:
            work()
        except OSError as error:
            told = [str(error)]
    if failures := from_all_ranks(told):
        raise RolloutError(f"responses could not be kept for going on in mid-epoch: {failures[0]}")


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_part(path: Path, version: int, steps: Sequence[Sequence[Row]], report: Mapping[str, float]) -> None:
    rows = [row for step in steps for row in step]
    named = [(step, row.prompt_index, row.sample, len(row)) for step, held in enumerate(steps) for row in held]
    tensors = {
        name: torch.cat([row[name] for row in map(_tensors, rows)]) for name in (_tensors(rows[0]) if rows else ())
    }
    save_file(tensors, path.with_suffix(".safetensors"))
    with path.with_suffix(".safetensors").open("rb") as file:
        os.fsync(file.fileno())
    head = {"policy_version": version, "steps": len(steps), "report": dict(report), "rows": named}
    write_whole(path.with_suffix(".json"), json.dumps(head).encode())


def _tensors(row: Row) -> dict[str, Tensor]:
    found = {name: getattr(row, name) for name in FIELDS}
    found |= {STATISTIC + name: value for name, value in row.old_statistics.items()}
    return {name: value.cpu() for name, value in found.items() if value is not None}


def _shared_out(heads: Sequence[Mapping[str, Any]], rank: int, ranks: int) -> list[list[int]]:
    """Places of this rank's rows in each part."""
    chosen: list[list[int]] = [[] for _ in heads]
    for step in range(heads[0]["steps"]):
        named = sorted(
            (prompt, sample, length, part, place)
            for part, head in enumerate(heads)
            for place, (of_step, prompt, sample, length) in enumerate(head["rows"])
            if of_step == step
        )
        owners = assign([length for _, _, length, _, _ in named], ranks, [prompt for prompt, *_ in named])
        for (_, _, _, part, place), owner in zip(named, owners, strict=True):
            if owner == rank:
                chosen[part].append(place)
    return chosen


def _rows(path: Path, named: Sequence[Sequence[int]], places: Sequence[int]) -> Iterator[tuple[int, Row]]:
    """The rows at `places` of a part, with the optimizer steps they belong to."""
    if not places:
        return
    tensors, wanted, start = load_file(path), set(places), 0
    for place, (step, prompt_index, sample, length) in enumerate(named):
        if place in wanted:
            yield step, _row(tensors, prompt_index, sample, slice(start, start + length), place)
        start += length


def _row(tensors: Mapping[str, Tensor], prompt_index: int, sample: int, tokens: slice, place: int) -> Row:
    # What speaks of tokens has one entry less than there are tokens, in each row before as well.
    entries = slice(tokens.start - place, tokens.stop - place - 1)
    cut = {name: tensor[entries].clone() for name, tensor in tensors.items() if name != "token_ids"}
    statistics = {name.removeprefix(STATISTIC): value for name, value in cut.items() if name.startswith(STATISTIC)}
    return Row(
        prompt_index,
        sample,
        tensors["token_ids"][tokens].clone(),
        cut["loss_mask"],
        cut["advantages"],
        cut["rollout_logprobs"],
        cut["noise"],
        cut.get("old_logprobs"),
        cut.get("ref_logprobs"),
        statistics,
    )
