"""A study of a few small runs, and one that is never run."""

from __future__ import annotations

from pathlib import Path

from rlvr_lightning.study.spec import Method, Study

STUDY = """\
name: small
question: Does it run?
baseline: grpo
seeds: [0, 1]
success: 0.3
probe: spark
threads: 1
shown: [lp_reg]
overrides:
  - engine=transformers
  - trainer.accelerator=cpu
  - trainer.max_epochs=4
  - trainer.val_every_n_epochs=1
  - task.num_held_out=8
  - task.num_train=100
  - rollout.prompts_per_epoch=2
  - trainer.forces_every_n_steps=1
methods:
  grpo:
    title: GRPO
    overrides: ["conf=[grpo,sparks]"]
  lp_reg:
    overrides: ["conf=[lp_reg,sparks]", "regularizer.lp_reg.quantile=0.3"]
    seeds: [1]
"""


METHODS = {"a": Method(["conf=grpo"]), "b": Method(["conf=archer", "optim.lr=1"], [3, 1], "B")}


def spec(**changes: object) -> Study:
    """Two methods, three seeds."""
    return Study(**{"name": "s", "question": "?", "methods": METHODS, "baseline": "a", "seeds": [1, 2, 3], **changes})  # type: ignore[arg-type]


def put(folder: Path, text: str = STUDY, name: str = "small") -> Path:
    """A configuration folder with the study."""
    (folder / "study").mkdir(parents=True, exist_ok=True)
    (folder / "study" / f"{name}.yaml").write_text(text)
    return folder
