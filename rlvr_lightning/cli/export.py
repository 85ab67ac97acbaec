"""A run's policy as a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig

from rlvr_lightning.config.build import model_source
from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.training.checkpoint_io import chosen, read_tensors


def load_policy(source: ModelSource, checkpoint: Path) -> Policy:
    """The policy of a checkpoint, on the CPU.

    Raises:
        CheckpointError: it is corrupt, or of another model or another kind of adapters.
    """
    policy = Policy(source)
    trained = {f"policy.{name}": weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}
    try:
        read_tensors(checkpoint, trained)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} does not fit model.path={source.path}: {error}") from error
    return policy


def export_run(cfg: DictConfig) -> Path:
    """Write the policy of `resume` to `export.path`.

    Raises:
        ConfigError: no run is named, or the target holds something already.
    """
    if cfg.resume is None:
        raise ConfigError("export needs the run to export: resume=OUTPUT_DIR")
    folder = Path(cfg.resume)
    target = folder / "hf" if cfg.export.path is None else Path(cfg.export.path).expanduser()
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"export.path={target} is not empty: choose another folder")
    source = model_source(cfg)
    policy = load_policy(source, chosen(folder / "checkpoints", cfg.export.checkpoint))
    return export_policy(policy, source, target)


def export_policy(policy: Policy, source: ModelSource, target: Path) -> Path:
    """Write weights (adapters merged), configuration and tokenizer; a reader never sees half a folder."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    plain = source.load()
    missing, unexpected = plain.load_state_dict(dict(policy.full_weights()), strict=False)
    tied = {name for name in missing if name in (plain._tied_weights_keys or ())}
    assert set(missing) == tied, missing
    assert not unexpected, unexpected
    plain.save_pretrained(partial)
    source.tokenizer.save_pretrained(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    return target
