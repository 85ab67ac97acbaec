"""A study of a few small runs."""

from __future__ import annotations

from pathlib import Path

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


def put(folder: Path, text: str = STUDY, name: str = "small") -> Path:
    """A configuration folder with the study."""
    (folder / "study").mkdir(parents=True, exist_ok=True)
    (folder / "study" / f"{name}.yaml").write_text(text)
    return folder
