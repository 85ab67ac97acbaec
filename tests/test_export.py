"""The exported folder's files: one, or several with an index, and never more in memory than a file takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rlvr_lightning.cli.export import export_policy, write_weights
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource


def test_weights_are_taken_one_by_one_and_let_go_with_each_file(tmp_path: Path) -> None:
    alive: list[int] = []
    made: list[Tensor] = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        import gc
        import weakref

        references: list[weakref.ref[Tensor]] = []
        for number in range(6):
            weight = torch.full((100,), float(number))
            made.append(weight.clone())
            references.append(weakref.ref(weight))
            yield f"w{number}", weight
            del weight
            gc.collect()
            alive.append(sum(reference() is not None for reference in references))

    write_weights(weights(), tmp_path, limit=900)
    # Two of 400 bytes a file.
    assert max(alive) <= 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2400
    assert index["weight_map"]["w3"] == "model-00002-of-00003.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    for number, expected in enumerate(made):
        held = load_file(tmp_path / index["weight_map"][f"w{number}"])
        assert torch.equal(held[f"w{number}"], expected)


def test_a_folder_of_several_files_is_the_same_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    source = ModelSource()
    policy = Policy(source)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.01)
    folder = export_policy(policy, source, tmp_path / "hf")
    assert (folder / "model.safetensors").is_file()
    (folder / "model.safetensors").unlink()
    write_weights(policy.full_weights(), folder, limit=2**20)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    for name, weight in policy.full_weights():
        assert torch.equal(loaded.get_parameter(name), weight), name
    assert GenerationConfig.from_pretrained(folder) == GenerationConfig.from_pretrained(source.folder)
    assert Policy(ModelSource(str(folder))).fingerprint == Policy(ModelSource(str(folder))).fingerprint
