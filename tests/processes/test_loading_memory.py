"""Two ranks load policy and reference of a model of 400M weights: none of them ever holds much more than its shards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlvr_lightning.models.source import ModelSource

pytestmark = pytest.mark.slow

# 394M weights.
SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 24000,
}
RANKS = 2
WORK = """
import sys
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
import transformers.models.llama.modeling_llama
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.training.sharding import ShardSettings, make_mesh, shard

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

folder, rank, world, rendezvous = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
# What every process holds before a weight is read: libraries, a process group, a tiny model that went through a pass.
Policy(ModelSource())
if world > 1:
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    device_mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    share = partial(shard, mesh=make_mesh(device_mesh, ShardSettings(), 1), settings=ShardSettings())
    dist.barrier()
else:
    share = None
before = peak()
policy = Policy(ModelSource(str(folder)), share=share)
alone = peak() - before
reference = Policy(ModelSource(str(folder)), trainable=False, share=share) if world > 1 else None
print(alone, peak() - before, sum(p.numel() for p in policy.parameters()))
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Written tensor by tensor in bfloat16, four files and their index, without a model in memory."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("llama_400m")
    LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    weights = [(name, p.shape) for name, p in ModelSource(str(folder)).build().named_parameters()]
    of_file = {}
    for number in range(4):
        name = f"model-{number + 1:05d}-of-00004.safetensors"
        own = weights[number::4]
        of_file.update(dict.fromkeys((key for key, _ in own), name))
        generator = torch.Generator().manual_seed(number)
        save_file(
            {key: (0.02 * torch.randn(shape, generator=generator)).to(torch.bfloat16) for key, shape in own},
            folder / name,
            {"format": "pt"},
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": of_file}))
    yield folder
    shutil.rmtree(folder)


def loaded(folder: Path, world: int, rendezvous: Path) -> list[tuple[int, int, int]]:
    command = [sys.executable, "-c", WORK, str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world), str(rendezvous)], stdout=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    found = []
    for process in ranks:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0
        alone, both, numel = map(int, said.split()[-3:])
        found.append((alone, both, numel))
    return found


def test_no_rank_holds_much_more_than_one_model_for_policy_and_reference(folder: Path, tmp_path: Path) -> None:
    for _, both, numel in loaded(folder, RANKS, tmp_path / "rendezvous"):
        model = 4 * numel
        assert numel > 380e6
        # Half a policy and half a reference.
        assert both <= 1.2 * model + 300e6
        assert both >= 0.9 * model


def test_one_process_needs_the_model_and_a_tensor(folder: Path, tmp_path: Path) -> None:
    ((alone, _, numel),) = loaded(folder, 1, tmp_path / "rendezvous")
    assert 4 * numel * 0.95 <= alone <= 1.1 * 4 * numel + 300e6
