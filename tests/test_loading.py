"""A model built without weights and filled from its files is the one `from_pretrained` loads, whatever the files are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr_lightning.errors import ModelError
from rlvr_lightning.models.loading import Files
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource, bundled_model

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}


def config(kind: str) -> Any:
    import transformers as t

    return {
        "llama": lambda: t.LlamaConfig(**SIZES),
        "llama_tied": lambda: t.LlamaConfig(**SIZES, tie_word_embeddings=True),
        "llama_yarn": lambda: t.LlamaConfig(**SIZES, rope_parameters=YARN),
        "qwen2": lambda: t.Qwen2Config(**SIZES),
        "qwen3": lambda: t.Qwen3Config(**SIZES, tie_word_embeddings=True),
        "mistral": lambda: t.MistralConfig(**SIZES),
        "phi3": lambda: t.Phi3Config(**SIZES, pad_token_id=0),
        "mixtral": lambda: t.MixtralConfig(**SIZES, num_local_experts=2),
        "gemma2": lambda: t.Gemma2Config(**SIZES),
        "granite": lambda: t.GraniteConfig(**SIZES, logits_scaling=8.0),
        "cohere": lambda: t.CohereConfig(**SIZES, pad_token_id=0),
    }[kind]()


def folder_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    """A random model of that kind on disk; its norms and biases are random as well."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def whole(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def assert_same(policy: Policy, expected: Any) -> None:
    found = policy.causal_lm
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert mine[name].device.type == "cpu"
            assert mine[name].dtype == tensor.dtype, name
            assert torch.equal(mine[name], tensor), name
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(found(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "llama_yarn", "qwen2", "qwen3", "mistral", "phi3"])
@pytest.mark.parametrize(("dtype", "shard"), [(torch.float32, "5GB"), (torch.bfloat16, "10KB")])
def test_every_weight_and_buffer_is_from_pretraineds(
    kind: str, dtype: torch.dtype, shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(kind, tmp_path, dtype, shard)
    assert (folder / "model.safetensors.index.json").exists() == (shard != "5GB")
    expected = whole(folder)
    monkeypatch.setattr(ModelSource, "load", None)  # the whole model is never loaded
    policy = Policy(ModelSource(str(folder)))
    assert_same(policy, expected)
    tied = policy.causal_lm.config.tie_word_embeddings
    head, embeddings = policy.causal_lm.get_output_embeddings(), policy.causal_lm.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tied


def test_the_reference_is_frozen_and_the_policy_is_not() -> None:
    assert all(parameter.requires_grad for parameter in Policy(ModelSource()).parameters())
    reference = Policy(ModelSource(), trainable=False)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_files_of_another_kind_are_loaded_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of("llama", tmp_path)
    expected = whole(folder)
    (folder / "model.safetensors").unlink()
    torch.save(expected.state_dict(), folder / "pytorch_model.bin")
    with caplog.at_level(logging.INFO):
        assert_same(Policy(ModelSource(str(folder))), expected)
    assert "has no safetensors files: every rank loads the whole model before it is shared out" in caplog.text


def test_weights_under_other_names_are_loaded_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of("mixtral", tmp_path)
    with caplog.at_level(logging.INFO):
        assert_same(Policy(ModelSource(str(folder))), whole(folder))
    assert "holds no tensor model.layers.0.mlp" in caplog.text


def test_a_missing_file_of_several_is_named(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, shard="10KB")
    (folder / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    gone = next(
        iter(sorted(set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())))
    )
    (folder / gone).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=rf"lacks {gone}, which its model.safetensors.index.json names"):
        Policy(ModelSource(str(folder)))


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_logits_that_are_more_than_an_output_layers_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its logits are not those of a plain output layer"):
        Policy(ModelSource(str(folder_of(kind, tmp_path))))


def test_rows_are_read_alone_and_in_memory_of_their_own() -> None:
    files = Files(str(bundled_model()))
    name = "model.layers.1.mlp.up_proj.weight"
    rows = files.read(name, slice(3, 10))
    assert rows.dtype == torch.float32
    assert rows.untyped_storage().nbytes() == rows.numel() * 4
    assert torch.equal(rows, files.read(name, slice(None))[3:10])
    assert files.read(name, slice(0, 0)).shape == (0, files.shape(name)[1])


def test_a_fingerprint_is_the_base_models_alone(tmp_path: Path) -> None:
    from peft import LoraConfig

    plain = Policy(ModelSource()).fingerprint
    for seed in (0, 1):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        assert Policy(ModelSource(lora=lora)).fingerprint == plain
    folder = folder_of("llama", tmp_path / "one")
    first = Policy(ModelSource(str(folder))).fingerprint
    assert first != plain
    state = whole(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert Policy(ModelSource(str(folder))).fingerprint == first
    state["model.layers.0.mlp.up_proj.weight"][0, 3] += 1e-3
    torch.save(state, folder / "pytorch_model.bin")
    assert Policy(ModelSource(str(folder))).fingerprint != first


def test_adapters_begin_from_the_seed_alone() -> None:
    from peft import LoraConfig

    def drawn(seed: int, draws: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        torch.rand(draws)
        policy = Policy(ModelSource(lora=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")))
        return {name: p.detach() for name, p in policy.named_parameters() if ".lora_" in name}

    first, again, other = drawn(3, 0), drawn(3, 7), drawn(4, 0)
    for name, value in first.items():
        assert torch.equal(again[name], value)
        assert torch.equal(other[name], value) == (".lora_B." in name)
        assert bool(value.any()) == (".lora_A." in name)
    matrices = [value for name, value in first.items() if "lora_A" in name and "layers.0" in name]
    assert not torch.equal(matrices[0], matrices[1])
