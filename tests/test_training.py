"""Whole runs on the bundled model: outputs, repeatability, resuming, cutting, adapters."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from training import SMALL, drawn, fit, recorded, weights, widest_difference

from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import build_data, build_module, build_run
from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.evaluation.metrics import AvgAtK
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.training.checkpoint_io import newest
from rlvr_lightning.types import VERDICT_KINDS, Problem, Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier

OFF_POLICY = ("conf=archer", "rollout.prompts_per_step=4", "rollout.passes=2")


@pytest.fixture(scope="module")
def archer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archer") / "run"
    with drawn():
        fit(folder, *OFF_POLICY, "trainer.max_epochs=4")
    return folder


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "logs" / "metrics.csv").open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def test_a_run_leaves_everything_behind(archer: Path) -> None:
    for name in ("config.yaml", "versions.json", "curves.png", "checkpoints/best.json"):
        assert (archer / name).stat().st_size > 0, name
    assert newest(archer / "checkpoints").name == "step_00000016"
    assert (archer / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list(archer.glob("tensorboard/version_0/events*"))
    assert json.loads((archer / "versions.json").read_text())["torch"] == torch.__version__
    # Four epochs of four optimizer steps, each from the policy of the step it began at.
    assert sorted(p.name for p in archer.glob("rollouts/version_*")) == [
        f"version_{step:08}.rank_0_of_1.parquet" for step in (0, 4, 8, 12)
    ]
    rows = recorded(archer, 4)
    assert len(rows) == 8 * 4
    assert {row["policy_version"] for row in rows} == {4}
    assert [row["prompt_index"] for row in rows[::4]] == list(range(8, 16))
    assert all(row["reward"] == float(row["extracted"] == row["answer"]) for row in rows)


def test_what_is_logged(archer: Path) -> None:
    reward = logged(archer, "reward/mean")
    assert len(reward) == 4
    first = [row["reward"] for row in recorded(archer, 0)]
    assert reward[0] == pytest.approx(sum(first) / len(first))
    # The engine and the trainer agree on what was sampled.
    assert max(logged(archer, "rollout/logprob_gap_max")) < 1e-4
    knowledge, reasoning = logged(archer, "policy/entropy/knowledge"), logged(archer, "policy/entropy/reasoning")
    assert all(low < 0.1 < high for low, high in zip(knowledge, reasoning, strict=True))
    assert 0 < logged(archer, "policy/kl_ref/reasoning")[0] < logged(archer, "policy/kl_ref/reasoning")[-1]
    for share in logged(archer, "policy/share/reasoning"):
        assert 0.19 < share < 0.27  # a tie at the threshold is reasoning


def test_the_same_seed_gives_the_same_run_and_another_another(archer: Path, tmp_path: Path) -> None:
    fit(tmp_path / "again", *OFF_POLICY, "trainer.max_epochs=4")
    assert widest_difference(archer, tmp_path / "again") == 0
    fit(tmp_path / "other", *OFF_POLICY, "trainer.max_epochs=4", "seed=1")
    assert widest_difference(archer, tmp_path / "other") > 1e-4


def test_a_resumed_run_ends_where_an_unbroken_one_does(archer: Path, tmp_path: Path) -> None:
    fit(tmp_path, *OFF_POLICY)
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=4")) == 0
    assert widest_difference(archer, tmp_path) == 0
    assert len(logged(tmp_path, "reward/mean")) == 4
    assert logged(tmp_path, "reward/mean") == pytest.approx(logged(archer, "reward/mean"))


def test_a_run_saved_before_a_setting_existed_goes_on(archer: Path, tmp_path: Path) -> None:
    fit(tmp_path, *OFF_POLICY)
    saved = OmegaConf.load(tmp_path / "config.yaml")
    for key in ("shaping", "correction", "controller", "rollout.packing", "rollout.generation_batches"):
        section, _, name = key.rpartition(".")
        del (saved[section] if section else saved)[name]
    OmegaConf.save(saved, tmp_path / "config.yaml")
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=4")) == 0
    assert widest_difference(archer, tmp_path) == 0


def test_a_run_of_odd_length_ends_with_a_checkpoint_and_a_measurement(
    archer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path, *OFF_POLICY, "trainer.max_epochs=3")
    assert run.module.evaluated_version == 12
    assert capsys.readouterr().out.count("held-out accuracy") == 1
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=4")) == 0
    assert widest_difference(archer, tmp_path) == 0


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_micro_batches_change_nothing(variant: str, tmp_path: Path) -> None:
    common = (
        "conf=archer_lp_reg",
        f"variant={variant}",
        "rollout.prompts_per_step=4",
        "regularizer.lp_reg.quantile=0.2",
    )
    runs = [fit(tmp_path / str(size), *common, f"trainer.micro_batch_size={size}") for size in (64, 5, 1)]
    start = torch.cat([weight.flatten() for _, weight in Policy(ModelSource()).full_weights()])
    whole = weights(runs[0])
    moved = (whole - start).abs().mean()
    assert moved > 1e-5
    for other in runs[1:]:
        # float32, and Adam divides by the gradient's size: rounding shows where a gradient is nearly nothing.
        assert (weights(other) - whole).abs().mean() < 3e-3 * moved


def test_on_policy_needs_no_second_pass_and_has_ratio_one(tmp_path: Path) -> None:
    run = fit(tmp_path, "conf=lp_reg", "regularizer.lp_reg.quantile=0.2")
    assert run.data.steps_per_epoch == 1
    assert all(row.old_logprobs is None and row.ref_logprobs is None for step in run.data.steps for row in step)
    assert logged(tmp_path, "policy/ratio") == [1.0, 1.0]
    assert logged(tmp_path, "policy/tokens_in/lp_reg")[0] > 0
    assert run.module.policy_version == 2


def test_lora_trains_adapters_alone_and_samples_from_the_merged_weights(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", *OFF_POLICY, "peft=lora", "optim.lr=1e-2")
    trained = {name for name, p in run.module.policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert run.module.reference.model is None
    # At the start adapters do nothing: the reference is the policy.
    assert logged(tmp_path / "run", "policy/kl_ref/reasoning")[-1] > 1e-6
    assert max(logged(tmp_path / "run", "rollout/logprob_gap_max")) < 1e-4
    base = dict(Policy(ModelSource()).full_weights())
    merged = dict(run.module.policy.full_weights())
    assert merged.keys() == base.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (merged[name] - base[name]).abs().max() > 1e-4
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


@pytest.mark.parametrize("extra", [(), ("peft=lora", "optim.lr=1e-2")])
def test_an_exported_folder_is_the_policy(extra: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = fit(tmp_path / "run", *OFF_POLICY, *extra)
    assert (
        main(("export", f"resume={tmp_path / 'run'}", "export.checkpoint=last", f"export.path={tmp_path / 'hf'}")) == 0
    )
    source = ModelSource(str(tmp_path / "hf"))
    assert source.tokenizer.chat_template == run.module.source.tokenizer.chat_template
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.tensor([[2, 5, 13, 14, 3, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, run.module.policy.model(ids).logits, rtol=1e-5, atol=1e-5)
    assert main(("export", f"resume={tmp_path / 'run'}", f"export.path={tmp_path / 'hf'}")) == 2


def test_validate_test_and_predict_agree(archer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for verb in ("validate", "test"):
        assert main((verb, f"resume={archer}", "export.checkpoint=last")) == 0
        shown.append([line for line in capsys.readouterr().out.splitlines() if "@2" in line])
    assert shown[0] == shown[1]
    average, passing = shown[0]
    assert "pass@2" in passing
    assert main(("predict", f"resume={archer}", "export.checkpoint=last")) == 0
    with gzip.open(archer / "predictions.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    metric = AvgAtK(2)
    metric.update(torch.tensor([row["correct"] for row in rows]).view(-1, 2))
    assert f" {float(metric.compute()):.4f} " in average


class Moody:
    """Judges like the exact verifier, but fails on every answer that ends in an odd digit."""

    def __call__(self, response: str, problem: Problem) -> Verdict:
        if response[-1:] in set("13579"):
            raise RuntimeError("no mood for odd answers")
        return ExactVerifier()(response, problem)


def test_a_failing_verifier_is_counted_and_named_and_gives_no_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ("trainer.max_epochs=1", "trainer.val_every_n_epochs=1", "grading.max_error_share=1")
    run = build_run(compose([*SMALL, *OFF_POLICY, *once, f"output_dir={tmp_path}"]))
    run.data.verifier = Moody()
    run.fit()
    rows = recorded(tmp_path, 0)
    failed = [row for row in rows if row["response"][-1:] in set("13579")]
    assert 0 < len(failed) < len(rows)
    assert all(row["reward"] is None and row["advantage"] == 0 for row in failed)
    assert logged(tmp_path, "rollout/dropped") == [len(failed)]
    assert [row["verdict"] for row in failed] == ["error"] * len(failed)
    shares = {kind: sum(row["verdict"] == kind for row in rows) / len(rows) for kind in VERDICT_KINDS}
    assert {kind: logged(tmp_path, f"verifier/{kind}")[0] for kind in VERDICT_KINDS} == pytest.approx(shares)
    assert sum(shares.values()) == 1
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    assert logged(tmp_path, "reward/mean")[0] == pytest.approx(sum(rewards) / len(rewards))
    assert logged(tmp_path, "val/unjudged")[-1] == run.module.num_unjudged
    assert logged(tmp_path, "val/verifier_error")[-1] == pytest.approx(run.module.num_unjudged / 8)
    assert run.module.num_unjudged > 0
    assert f"{run.module.num_unjudged} responses without a verdict" in capsys.readouterr().out


def test_a_foreign_checkpoint_is_refused(archer: Path, tmp_path: Path) -> None:
    shutil.copytree(archer / "checkpoints", tmp_path / "checkpoints")
    state = newest(tmp_path / "checkpoints") / "state.json"
    held = json.loads(state.read_text())
    held["state"]["module"]["rlvr"]["fingerprint"] = "another"
    state.write_text(json.dumps(held))
    cfg = compose(["conf=archer", "engine=transformers", f"output_dir={tmp_path}", f"resume={tmp_path}"])
    cfg.trainer.max_epochs = 5
    with pytest.raises(CheckpointError, match="was trained from another model than model.path=tiny"):
        build_run(cfg).fit()
    assert not (tmp_path / "config.yaml").exists()


def test_sampling_and_scoring_temperatures_must_agree(tmp_path: Path) -> None:
    import lightning as L

    cfg = compose(["conf=grpo", "engine=transformers", f"output_dir={tmp_path}"])
    source = ModelSource()
    cfg.rollout.temperature = 0.7
    data = build_data(cfg, source, component(cfg, "engine"))
    cfg.rollout.temperature = 1.0
    trainer: Any = L.Trainer(
        max_epochs=1, reload_dataloaders_every_n_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    stale: Any = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(ConfigError, match="it would learn from old rollouts"):
        stale.fit(build_module(cfg, source), data)
    with pytest.raises(ConfigError, match="sampling at temperature 0.7 and scoring at 1.0"):
        trainer.fit(build_module(cfg, source), data)


def test_a_response_longer_than_the_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(("fit", "conf=grpo", "engine=transformers", "rollout.max_new_tokens=512", f"output_dir={tmp_path}")) == 2
    )
    assert "rollout.max_new_tokens=512 leaves no room for a prompt" in capsys.readouterr().err
