"""The numbers a configuration amounts to, shown before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rlvr_lightning.errors import ConfigError, ModelError
from rlvr_lightning.models.shapes import KNOWN, ModelShape, model_config
from rlvr_lightning.models.source import ModelSource


@dataclass(frozen=True)
class DerivedNumbers:
    """Label and value of each row of the table."""

    title: str
    rows: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, cfg: DictConfig) -> DerivedNumbers:
        """Work them out.

        Raises:
            ConfigError: the numbers contradict each other.
        """
        rollout, trainer = cfg.rollout, cfg.trainer
        per_step = rollout.prompts_per_step or rollout.prompts_per_epoch
        if per_step < 1 or rollout.prompts_per_epoch % per_step or rollout.passes < 1:
            raise ConfigError(
                f"rollout.prompts_per_step={per_step} must divide rollout.prompts_per_epoch="
                f"{rollout.prompts_per_epoch}, and rollout.passes={rollout.passes} must be at least 1"
            )
        steps = rollout.prompts_per_epoch // per_step * rollout.passes
        responses = rollout.prompts_per_epoch * rollout.group_size
        batches = rollout.generation_batches
        refilled = f" (up to {batches} batches of them)" if batches > 1 else ""
        on_policy = "on-policy" if steps == 1 else "off-policy"
        regularizers = ", ".join(cfg.regularizer or {}) or "none"
        rows = (
            ("model", f"{cfg.model.path}, {parameters(cfg)}, {cfg.trainer.precision}"),
            ("task, verifier", f"{_name(cfg.task)}, {_name(cfg.verifier)}"),
            ("advantage", " + ".join(_name(node) for node in (cfg.shaping, cfg.advantage) if node)),
            ("objective", f"{_name(cfg.partitioner)} + {_name(cfg.constraint)} + regularizers: {regularizers}"),
            *([("weighting", ", ".join(cfg.weighting))] if cfg.weighting else []),
            *([("correction", _name(cfg.correction))] if cfg.correction else []),
            *controller_row(cfg),
            ("aggregation, variant", f"{_name(cfg.aggregator)}, {cfg.variant}"),
            ("prompts x group", f"{rollout.prompts_per_epoch} x {rollout.group_size}"),
            ("responses per epoch", f"{responses:,}{refilled}"),
            ("optimizer steps per epoch", f"{steps} of {per_step * rollout.group_size:,} responses ({on_policy})"),
            ("epochs, optimizer steps", f"{trainer.max_epochs:,}, {trainer.max_epochs * steps:,}"),
            ("tokens per response", f"at most {rollout.max_new_tokens:,} after {rollout.max_prompt_tokens:,}"),
            ("response tokens per epoch", f"at most {responses * batches * rollout.max_new_tokens:,}"),
            ("engine, strategy", f"{_engine(cfg)}, {cfg.strategy.name} x {trainer.devices} x {trainer.num_nodes}"),
            ("outputs", str(cfg.output_dir)),
        )
        return cls(cfg.name, rows)

    def show(self) -> None:
        """Print the table, on the first rank alone."""
        if first_rank():
            self._print()

    def _print(self) -> None:
        table = Table(title=f"rlvr_lightning: {self.title}", title_justify="left", show_header=False)
        for label, value in self.rows:
            table.add_row(label, value)
        Console().print(table)


def first_rank() -> bool:
    """Whether this process is the first, as launchers tell it before any process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _name(node: DictConfig) -> str:
    return str(node._target_).rpartition(".")[2]


def controller_row(cfg: DictConfig) -> tuple[tuple[str, str], ...]:
    """What drives which number; no row where nothing does.

    Raises:
        ConfigError: the number is not named.
    """
    if not cfg.controller:
        return ()
    if OmegaConf.is_missing(cfg.controller, "drives"):
        raise ConfigError("controller.drives must be given: controller.drives=...")
    return (("controller", f"{_name(cfg.controller)} drives {cfg.controller.drives}"),)


def _engine(cfg: DictConfig) -> str:
    from rlvr_lightning.rollout.engines.vllm.installed import vllm_installed

    if _name(cfg.engine) != "auto_engine":
        return _name(cfg.engine)
    return "VLLMEngine (auto)" if vllm_installed() else "TransformersEngine (auto)"


def parameters(cfg: DictConfig) -> str:
    """`0.86M parameters`, counted without loading a weight."""
    try:
        count = _count(ModelSource(cfg.model.path).folder)
    except ModelError:
        return "not on this machine"
    return f"{count / 1e9:.2f}B parameters" if count >= 1e9 else f"{count / 1e6:.2f}M parameters"


def _count(folder: str) -> int:
    config = model_config(folder)
    if config.get("model_type") in KNOWN:
        return ModelShape.of(config, folder).parameters
    # Any other architecture: its module without memory.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model.path={folder}: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters())
