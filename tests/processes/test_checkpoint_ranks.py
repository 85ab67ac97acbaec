"""Checkpoints of several ranks: no rank holds the whole, and another number of ranks goes on with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from training import SMALL, last_checkpoint

from rlvr_lightning.training import checkpoint_io as io

pytestmark = pytest.mark.slow

MIB = 2**20


def private_memory() -> int:
    """Bytes of this process that are no file's: what it holds, apart from pages of files it reads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


class Peak:
    """The most private memory while the block runs, beyond what there was before [bytes]."""

    def __enter__(self) -> Peak:
        self.before, self.most, self._over = private_memory(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most, private_memory() - self.before)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def sharded_model_and_moments() -> dict[str, torch.Tensor]:
    """100M parameters made where their shards lie, as FSDP2 splits them, and two moments of each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=7,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    held = {}
    for name, weight in model.named_parameters():
        for kind in ("policy", "exp_avg", "exp_avg_sq"):
            held[f"{kind}.{name}"] = value = torch.zeros_like(weight.detach())
            assert isinstance(value, DTensor)
            value.to_local().normal_()
    return held


def save_and_read(rank: int, world: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(28000 + os.getppid() % 900))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    held = sharded_model_and_moments()
    whole = sum(value.numel() * value.element_size() for value in held.values())
    mine = sum(value.to_local().nbytes for value in held.values() if isinstance(value, DTensor))
    assert whole > 1100 * MIB
    assert mine < 0.51 * whole
    with Peak() as saving:
        path = io.begin(folder, 1, held, {}, dist.group.WORLD).result()
    # A copy of this rank's shards, from which is written while training goes on, and nothing else.
    assert saving.most < mine + 100 * MIB, saving.most / MIB
    into = {name: torch.zeros_like(value) for name, value in held.items()}
    for value in into.values():
        value.zero_()
    with Peak() as reading:
        io.read_tensors(path, into, dist.group.WORLD)
    # One tensor's part at a time.
    assert reading.most < 200 * MIB, reading.most / MIB
    for name, value in into.items():
        assert torch.equal(value.to_local(), held[name].to_local()), name
    sizes = json.loads((path / "state.json").read_text())["files"]
    assert all(size < 0.51 * whole for size in sizes.values())
    sys.stdout.write(
        f"rank {rank}: {whole / MIB:.0f} MiB in all, {mine / MIB:.0f} here, saving {saving.most / MIB:.0f}, "
        f"reading {reading.most / MIB:.0f}\n"
    )
    dist.destroy_process_group()


def test_no_rank_ever_holds_the_whole(tmp_path: Path) -> None:
    mp.spawn(save_and_read, (2, tmp_path), 2)


COMPARE = """
import sys
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor
from pathlib import Path
from training import last_checkpoint
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.resuming import resumed
from rlvr_lightning.training.run_state import run_tensors

folder, overrides = sys.argv[1], sys.argv[2:]


class Compare(Callback):
    def on_train_start(self, trainer, module):
        expected = last_checkpoint(Path(folder))
        live = {name: value for name, value in run_tensors(trainer, module).items() if not name.startswith("random.")}
        assert live.keys() == expected.keys()
        for name, value in live.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            assert torch.equal(whole, expected[name]), name
        moments = [name for name in live if name.endswith("exp_avg")]
        assert moments and all(expected[name].abs().max() > 0 for name in moments)
        print(f"rank {trainer.global_rank} of {trainer.world_size}: {len(live)} the same", flush=True)


cfg = resumed(compose([f"resume={folder}", *[o for o in overrides if o.startswith("strategy")]]), overrides)
build_run(cfg, [Compare()]).fit()
"""


def resume(folder: Path, script: Path, *overrides: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, script, folder, *overrides],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_two_ranks_to_one_and_back_with_the_same_bits(tmp_path: Path) -> None:
    """Weights and moments, of a run stopped in mid-epoch."""
    script, run = tmp_path / "compare.py", tmp_path / "run"
    script.write_text(COMPARE)
    settings = (*SMALL, "conf=archer", "rollout.prompts_per_step=4", "rollout.passes=2", f"output_dir={run}")
    two = ("strategy=fsdp", "trainer.devices=2")
    command = [sys.executable, "-m", "rlvr_lightning", "fit", *settings, *two, "trainer.max_epochs=1"]
    subprocess.run(command, check=True, timeout=300)
    first = last_checkpoint(run)
    assert len(list((io.newest(run / "checkpoints") / "weights").iterdir())) == 2
    seen = resume(run, script, "strategy=single", "trainer.devices=1", "trainer.max_epochs=2")
    assert f"rank 0 of 1: {len(first)} the same" in seen
    assert len(list((io.newest(run / "checkpoints") / "weights").iterdir())) == 1
    seen = resume(run, script, *two, "trainer.max_epochs=3")
    assert f"rank 0 of 2: {len(first)} the same" in seen
    assert io.newest(run / "checkpoints").name == "step_00000012"
