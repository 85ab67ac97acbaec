"""For every setting of peft's: the merged weights are the adapted policy, or it is refused when the run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_loading import folder_of, whole

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource

LINEAR = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
MERGED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora_rslora": {"use_dora": True, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.*up_proj": 7}, "alpha_pattern": {"k_proj": 32}},
    "some_layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "excluded": {"exclude_modules": ["v_proj"]},
    "biases_of_adapters": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},  # qwen2 has biases there
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "embeddings_dora": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "output_layer": {"target_modules": ["lm_head", "o_proj"]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "bias": {"bias": "all"},
    "lora_dropout": {"lora_dropout": 0.1},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "layer_replication": {"layer_replication": [(0, 2), (0, 2)]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "target_parameters": {"target_parameters": ["mlp.up_proj.weight"]},
    "use_qalora": {"use_qalora": True},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("qwen2", tmp_path_factory.mktemp("qwen2"))


def source(folder: Path, **settings: Any) -> ModelSource:
    from peft import LoraConfig

    return ModelSource(str(folder), LoraConfig(**{**LINEAR, **settings}))


@torch.no_grad()
def trained(policy: Policy) -> Policy:
    """The policy with its adapters moved, as training moves them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("name", MERGED)
def test_merged_weights_are_the_adapted_policy(name: str, folder: Path) -> None:
    policy = Policy(source(folder, **MERGED[name]))
    plain, ids = whole(folder), torch.arange(24).view(2, 12)
    with torch.no_grad():
        if name != "random":
            # Adapters begin as nothing, those of DoRA too.
            torch.testing.assert_close(policy.causal_lm(ids).logits, plain(ids).logits, rtol=0, atol=1e-5)
        adapted = trained(policy).causal_lm(ids).logits
        before = {key: value.clone() for key, value in policy.state_dict().items()}
        merged = dict(policy.full_weights())
        assert merged.keys() == dict(plain.named_parameters()).keys()
        assert (adapted - plain(ids).logits).abs().max() > 0.1
        with policy.adapters_off():
            torch.testing.assert_close(policy.causal_lm(ids).logits, plain(ids).logits, rtol=0, atol=1e-5)
        plain.load_state_dict(merged, strict=True)
        torch.testing.assert_close(plain(ids).logits, adapted, rtol=0, atol=1e-4)
        assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())


APART = {
    "dora": "use_dora=true",
    "dora_rslora": "use_dora=true",
    "biases_of_adapters": "lora_bias=true",
    "embeddings": "model.embed_tokens is adapted, which is no inner linear layer",
    "embeddings_dora": "use_dora=true",
    "output_layer": "lm_head is adapted, which is no inner linear layer",
}


@pytest.mark.parametrize("name", MERGED)
def test_base_and_adapters_are_the_merged_weights(name: str, folder: Path) -> None:
    policy = trained(Policy(source(folder, **MERGED[name])))
    adapters = policy.adapters()
    assert adapters is not None
    assert adapters.obstacle == APART.get(name, "")
    base = {name: weight.clone() for name, weight in policy.base_weights()}
    assert all(torch.equal(base[name], weight) for name, weight in whole(folder).named_parameters())
    if not adapters.obstacle:
        alone = dict(policy.adapter_weights())
        for name in [name.removesuffix(".lora_A.weight") for name in alone if "lora_A" in name]:
            base[f"{name}.weight"] += alone[f"{name}.lora_B.weight"] @ alone[f"{name}.lora_A.weight"]
            assert name.rpartition(".")[2] in adapters.targets
        assert adapters.rank == max(len(weight) for name, weight in alone.items() if "lora_A" in name)
        for name, weight in policy.full_weights():
            torch.testing.assert_close(base[name], weight, rtol=0, atol=1e-5)


def test_a_policy_without_adapters_has_none(folder: Path) -> None:
    assert Policy(ModelSource(str(folder))).adapters() is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"peft.config.{name}=.* is refused: "):
        source(folder, **REFUSED[name])


@pytest.mark.parametrize("init", ["olora", "orthogonal", "eva", "corda", "loftq", "pissa_niter_4"])
def test_first_values_that_change_the_reference_are_refused(init: str, folder: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(**LINEAR)
    config.init_lora_weights = init
    with pytest.raises(ConfigError, match="it changes the weights the reference consists of"):
        ModelSource(str(folder), config)


def test_a_tied_output_layer_and_a_bias_without_a_place_are_refused(tmp_path: Path) -> None:
    tied = folder_of("llama_tied", tmp_path)
    with pytest.raises(ConfigError, match=r"adapts model.embed_tokens, whose weight .* ties to another layer's"):
        Policy(source(tied, target_modules=["embed_tokens"]))
    with pytest.raises(ConfigError, match=r"lora_bias=true adapts model.layers.0.self_attn.q_proj, which has no bias"):
        Policy(source(tied, lora_bias=True))


def test_a_run_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlvr_lightning.cli.main import main

    run = ("fit", "conf=archer", "peft=lora", "+peft.config.bias=all", f"output_dir={tmp_path / 'run'}")
    assert main(run) == 2
    assert "peft.config.bias=all is refused" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
