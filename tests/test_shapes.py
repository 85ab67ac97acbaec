"""Shapes of models against transformers' own modules and the published numbers of parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_lightning.config.compose import compose
from rlvr_lightning.config.derived import parameters
from rlvr_lightning.errors import ModelError
from rlvr_lightning.models.shapes import KNOWN, SHAPES, ModelShape, model_shape, packaged
from rlvr_lightning.models.source import bundled_model


def on_meta(config: dict[str, Any]) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("file", sorted(SHAPES.glob("*.json")), ids=lambda file: file.stem)
def test_a_packaged_shape_has_the_published_number_of_parameters(file: Path) -> None:
    held = json.loads(file.read_text())
    shape = ModelShape.of(held["config"], file.stem)
    model = on_meta(held["config"])
    assert count(model) == shape.parameters == held["parameters"]
    assert count(model.get_decoder().layers[0]) == shape.layer_parameters
    assert set(held["hub_names"]) <= set(packaged())


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("biased", [False, True])
def test_biases_and_sizes_of_every_known_architecture(kind: str, biased: bool) -> None:
    config = {
        "model_type": kind,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "vocab_size": 101,
        "tie_word_embeddings": biased,
    }
    if kind in ("llama", "qwen3"):
        config["attention_bias"] = biased
    if kind == "llama":
        config["mlp_bias"] = biased
    model = on_meta(config)
    shape = ModelShape.of(config, kind)
    assert count(model) == shape.parameters
    found = {
        name: (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if "layers.0" in name and isinstance(m, torch.nn.Linear)
    }
    assert {name.rpartition(".")[2]: sizes for name, sizes in found.items()} == shape.linears


def test_adapters_are_counted_as_peft_makes_them() -> None:
    from peft import LoraConfig, get_peft_model

    config = json.loads((SHAPES / "smollm2_135m.json").read_text())["config"]
    shape = ModelShape.of(config, "smollm2")
    for targets in ("all-linear", ["q_proj", "v_proj"]):
        model = get_peft_model(on_meta(config), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == shape.adapter_parameters(4, targets)


def test_where_a_shape_comes_from(tmp_path: Path) -> None:
    assert model_shape("Qwen/Qwen2.5-32B").positions == 131072
    assert model_shape("Qwen/Qwen2.5-32B-Instruct").positions == 32768
    bundled = model_shape(str(bundled_model()))
    assert (bundled.layers, bundled.vocabulary, bundled.positions) == (4, 19, 512)
    with pytest.raises(ModelError, match="model.path=nobody/nothing is not on this machine.*Qwen/Qwen3-14B-Base"):
        model_shape("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ModelError, match="model_type 'mamba'; what it needs is known for llama, mistral"):
        model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ModelError, match="does not say intermediate_size, num_hidden_layers"):
        model_shape(str(tmp_path))


def test_a_run_says_how_large_its_model_is(tmp_path: Path) -> None:
    def said(path: str) -> str:
        return parameters(compose([f"model.path={path}"]))

    assert said("tiny") == "0.86M parameters"
    assert said("Qwen/Qwen2.5-32B") == "32.76B parameters"
    assert said("nobody/nothing") == "not on this machine"
    other = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert said(str(tmp_path)) == f"{count(on_meta(other)) / 1e6:.2f}M parameters"
