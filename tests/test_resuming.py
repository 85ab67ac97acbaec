"""What may be overridden when a run goes on: applied and trained with, or refused with the reason; never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from training import fit, last_checkpoint

from rlvr_lightning.cli import verbs
from rlvr_lightning.cli.main import main
from rlvr_lightning.config.compose import compose, experiment_override
from rlvr_lightning.config.resuming import resumed
from rlvr_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def run_config() -> Any:
    return compose(["conf=archer_controlled", "regularizer=[lp_reg]"])


@pytest.fixture
def saved(run_config: Any, tmp_path: Path) -> Path:
    """As a run leaves it, but for what is in its checkpoints."""
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(run_config, resolve=True))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def plain() -> Any:
    """As Hydra composes it without the run's experiment."""
    return compose(["strategy=ddp", "engine=transformers"])


def in_force(monkeypatch: pytest.MonkeyPatch, verb: str, *arguments: str) -> Any:
    """The configuration a verb is given."""
    given: list[Any] = []
    monkeypatch.setitem(verbs.VERBS, verb, given.append)
    assert main((verb, *arguments)) == 0
    return given[0]


APPLIED = [
    ("optim.lr=1e-6", "optim.lr", 1e-6),
    ("partitioner.quantile=0.9", "partitioner.quantile", 0.9),
    ("regularizer.lp_reg.coef=2", "regularizer.lp_reg.coef", 2),
    ("+optim.lr=1e-6", "optim.lr", 1e-6),
    ("constraint.clip_high={knowledge:0.25}", "constraint.clip_high", {"knowledge": 0.25, "reasoning": 0.5}),
    ("rollout.prompts_per_step=null", "rollout.prompts_per_step", None),
    ("trainer.max_epochs=7", "trainer.max_epochs", 7),
    ("controller.kp=0.3", "controller.kp", 0.3),
    ("optim.warmup_steps=${trainer.max_epochs}", "optim.warmup_steps", 40),
    ("strategy=ddp", "strategy.name", "ddp"),
    ("engine=transformers", "engine._target_", "rlvr_lightning.TransformersEngine"),
]


@pytest.mark.parametrize(("override", "key", "value"), APPLIED, ids=lambda item: str(item))
def test_a_value_is_put_into_the_runs_own_configuration(
    override: str, key: str, value: Any, saved: Path, plain: Any
) -> None:
    before = OmegaConf.load(saved / "config.yaml")
    if "clip_high" in key:
        before.controller = None
        OmegaConf.save(before, saved / "config.yaml")
    cfg = resumed(OmegaConf.merge(plain, {"resume": str(saved)}), [f"resume={saved}", override])
    found = OmegaConf.select(cfg, key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value
    assert cfg.resume == cfg.output_dir == str(saved)
    for other in set(before) - {"resume", "output_dir", key.split(".")[0]}:
        assert cfg[other] == before[other], other


def test_the_command_line_knows_the_runs_own_settings(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ("optim.lr=1e-6", "strategy=ddp", "partitioner.quantile=0.9", "engine=transformers")
    cfg = in_force(monkeypatch, "fit", *values, f"resume={saved}", "regularizer.lp_reg.coef=2")
    assert (cfg.optim.lr, cfg.partitioner.quantile, cfg.regularizer.lp_reg.coef) == (1e-6, 0.9, 2)
    assert (cfg.strategy.name, cfg.engine._target_) == ("ddp", "rlvr_lightning.TransformersEngine")


REFUSED = [
    ("seed=1", "seed cannot be changed in a run that has begun: the order of the prompts"),
    ("model.path=/elsewhere", "model.path cannot be changed in a run that has begun: weights and reference are that"),
    ("variant=reference", "variant cannot be changed in a run that has begun: its components were made with it"),
    ("output_dir=elsewhere", "output_dir cannot be changed in a run that has begun: a run goes on in its own folder"),
    ("optim.name=adamw_8bit", "optim.name cannot be changed in a run that has begun: the checkpoint's optimizer state"),
    ("peft.config=null", "peft.config cannot be changed in a run that has begun: the checkpoint's adapters"),
    ("controller.drives=constraint.clip_low.reasoning", "a run keeps its controller"),
    ("controller.initial=0.1", "the driven number has moved on"),
    ("constraint.clip_high.reasoning=0.4", "constraint.clip_high.reasoning is driven by the controller"),
    ("constraint.clip_high=0.4", "constraint.clip_high.reasoning is driven by the controller"),
    ("conf=archer", "a resumed run keeps its components; conf cannot be set together with resume="),
    ("partitioner=single", "a resumed run keeps its components; partitioner cannot be set together with resume="),
    ("regularizer=[]", "a resumed run keeps its components; regularizer cannot be set together with resume="),
    ("regularizer.lp_reg={_target_:x}", "a resumed run keeps its components: regularizer.lp_reg cannot be exchanged"),
    ("partitioner._target_=x", "a resumed run keeps its components: partitioner._target_ cannot be exchanged"),
    (
        "partitioner.quantil=0.9",
        "the run has no setting partitioner.quantil to override; did you mean partitioner.quan",
    ),
    ("+partitioner.extra=1", "the run has no setting partitioner.extra to override"),
    ("~partitioner.quantile", "the run has no setting partitioner.quantile to override"),
    ("optim.lr=1e-5,1e-6", "optim.lr has several values: a run goes on with one of them"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=lambda item: str(item)[:40])
def test_what_a_run_cannot_change_is_refused(override: str, message: str, saved: Path, plain: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        resumed(OmegaConf.merge(plain, {"resume": str(saved)}), [experiment_override(override)])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "override", ["conf=archer", "partitioner.quantil=0.9", "seed=1", "optim.lr=1,2", "a=(", "x.y=1"]
)
def test_a_refusal_is_one_line_on_the_command_line(
    override: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in saved.iterdir())
    assert main(("fit", override, f"resume={saved}")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert sorted(path.name for path in saved.iterdir()) == before


def test_other_verbs_may_measure_under_other_settings(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = in_force(
        monkeypatch, "validate", f"resume={saved}", "seed=3", "rollout.temperature=0.6", "rollout.eval_samples=2"
    )
    assert (cfg.seed, cfg.rollout.temperature, cfg.rollout.eval_samples) == (3, 0.6, 2)


def test_a_resumed_run_trains_with_what_was_overridden(tmp_path: Path) -> None:
    """And `config.yaml` tells what is in force, `config_history/` what was before."""
    fit(tmp_path, "conf=archer", "rollout.prompts_per_step=4")
    trained = last_checkpoint(tmp_path)
    first = (tmp_path / "config.yaml").read_text()
    common = (f"resume={tmp_path}", "trainer.max_epochs=3")
    assert main(("fit", *common, "optim.lr=0", "partitioner.quantile=0.5")) == 0
    # At rate 0 nothing moves.
    again = last_checkpoint(tmp_path)
    assert all(torch.equal(value, again[name]) for name, value in trained.items() if name.startswith("policy."))
    config = OmegaConf.load(tmp_path / "config.yaml")
    assert (config.optim.lr, config.partitioner.quantile, config.trainer.max_epochs) == (0, 0.5, 3)
    assert (tmp_path / "config_history" / "until_step_00000008.yaml").read_text() == first
    rows = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    share = rows[0].split(",").index("policy/share/reasoning")
    # The first row is of what was measured before training.
    shares = [float(row.split(",")[share]) for row in rows[2:]]
    assert max(shares[:2]) < 0.3 < 0.45 < shares[2] < 0.6
    # Resumed with nothing new, nothing is history.
    assert main(("fit", f"resume={tmp_path}", "trainer.max_epochs=3")) == 0
    assert len(list((tmp_path / "config_history").iterdir())) == 1
