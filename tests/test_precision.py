"""What is computed in half precision, and what never is: weights, optimizer state, everything after the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from training import SMALL, fit, weights

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.training.precision import compute_dtype

STEPS = (
    "conf=grpo",
    "rollout.prompts_per_step=8",
    "optim.lr=1e-6",
    "trainer.max_epochs=8",
    "trainer.val_every_n_epochs=8",
    "task.num_held_out=0",
)


@pytest.mark.slow
def test_eight_steps_at_a_small_rate_move_the_weights_as_float32_does(tmp_path: Path) -> None:
    start = torch.cat([weight.flatten() for _, weight in Policy(ModelSource()).full_weights()])
    moves = {}
    for precision in ("32-true", "bf16-mixed"):
        run = fit(tmp_path / precision, *STEPS, f"trainer.precision={precision}", "engine.dtype=float32")
        assert {p.dtype for p in run.module.policy.parameters()} == {torch.float32}
        optimizer = run.trainer.optimizers[0]
        state = [value for held in optimizer.state.values() for value in held.values()]
        assert {value.dtype for value in state} == {torch.float32}
        moves[precision] = (weights(run) - start).abs()
    moved = moves["bf16-mixed"]
    assert (moved > 0).double().mean() >= 0.99
    assert float(moved.sum()) == pytest.approx(float(moves["32-true"].sum()), rel=0.05)
    assert not torch.equal(moved, moves["32-true"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), torch.float32),
        (("trainer.precision=bf16-mixed",), torch.bfloat16),
        (("trainer.precision=bf16-mixed", "engine.dtype=float32"), torch.float32),
        (("engine.dtype=float16",), torch.float16),
        (("engine.dtype=bfloat16", "engine=auto"), torch.bfloat16),
    ],
)
def test_the_engine_samples_in_its_own_dtype_or_the_trainers(
    settings: tuple[str, ...], expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlvr_lightning.rollout.engines.auto.vllm_installed", lambda: False)
    seen = []
    sync = TransformersEngine.sync

    def synced(engine: TransformersEngine, *arguments: object) -> None:
        sync(engine, *arguments)  # type: ignore[arg-type]
        assert engine._model is not None
        seen.append({parameter.dtype for parameter in engine._model.parameters()})
        reference = {name: weight.to(expected) for name, weight in Policy(ModelSource()).full_weights()}
        assert all(torch.equal(p, reference[name]) for name, p in engine._model.named_parameters())

    monkeypatch.setattr(TransformersEngine, "sync", synced)
    build_run(compose([*SMALL, "trainer.max_epochs=0", *settings, f"output_dir={tmp_path}"])).fit()
    assert seen == [{expected}]


def test_after_the_logits_everything_is_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 6, 16, generator=generator)
    ids, mask = torch.randint(50, (2, 6), generator=generator), torch.ones(2, 6, dtype=torch.bool)
    head = torch.nn.Linear(16, 50, bias=False)
    for statistics in ((Entropy(),), (Entropy(differentiable=True), EntropyFlow())):
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(hidden)
            found, named = token_stats(hidden, ids, mask, head, 0.7, statistics)
        assert logits.dtype == torch.bfloat16
        expected, exact = token_stats(logits.float(), ids, mask, lambda x: x, 0.7, statistics)
        assert torch.equal(found, expected)
        for name, values in exact.items():
            assert values.dtype == torch.float32
            assert torch.equal(named[name], values), name


def test_half_precision_that_must_scale_its_loss_is_refused_in_python_too() -> None:
    for precision in ("16-mixed", "bf16-true", "64-true"):
        with pytest.raises(ConfigError, match="bf16-mixed"):
            compute_dtype(precision)


def test_a_saved_run_that_sets_the_weights_dtype_goes_on_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rlvr_lightning.config.resuming import resumed

    run = fit(tmp_path, "conf=grpo", "rollout.prompts_per_step=8", "trainer.max_epochs=1")
    saved = OmegaConf.load(tmp_path / "config.yaml")
    saved.model.dtype = "bfloat16"
    OmegaConf.save(saved, tmp_path / "config.yaml")
    cfg = resumed(compose([f"resume={tmp_path}"]), [f"resume={tmp_path}"])
    assert "dtype" not in cfg.model
    assert cfg.optim == run.cfg.optim
    assert "config.yaml sets model.dtype=bfloat16: there is no model.dtype any more" in caplog.text
