"""A run's policy as a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` and vLLM load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from rlvr_lightning.config.components import model_source
from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.models.loading import INDEX, SINGLE, build
from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.training.checkpoint_io import chosen, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of one file [bytes].
SHARD = 2 * 2**30


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
    model, files = build(source)
    if files is None:
        _write_renamed(policy, model, partial)
    else:
        model.config.dtype = torch.float32
        model.config.save_pretrained(partial)
        _copy_generation_config(source, partial)
        write_weights(policy.full_weights(), partial)
    source.tokenizer.save_pretrained(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    return target


def write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path, limit: int = SHARD) -> None:
    """Write tensors as they come, as Hugging Face has them: one file, or several and an index.

    Args:
        weights: by name, one by one; no more of them are held than a file takes.
        folder: to write to.
        limit: a file is begun anew before it would be longer [bytes].
    """
    held: dict[str, Tensor] = {}
    written: list[dict[str, int]] = []

    def flush() -> None:
        if held:
            save_file(held, folder / f"{len(written)}.safetensors", {"format": "pt"})
            written.append({name: weight.nbytes for name, weight in held.items()})
            held.clear()

    for name, weight in weights:
        if sum(other.nbytes for other in held.values()) + weight.nbytes > limit:
            flush()
        held[name] = weight.detach().contiguous()
    flush()
    if len(written) == 1:
        (folder / "0.safetensors").rename(folder / SINGLE)
        return
    places = {}
    for number, sizes in enumerate(written):
        file = f"model-{number + 1:05}-of-{len(written):05}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        places.update(dict.fromkeys(sizes, file))
    total = sum(sum(sizes.values()) for sizes in written)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_renamed(policy: Policy, plain: PreTrainedModel, folder: Path) -> None:
    """Where the library keeps weights under other names in files than in the model, it writes them itself."""
    missing, unexpected = plain.load_state_dict(dict(policy.full_weights()), strict=False)
    tied = {name for name in missing if name in (plain._tied_weights_keys or ())}
    assert set(missing) == tied, missing
    assert not unexpected, unexpected
    plain.save_pretrained(folder)


def _copy_generation_config(source: ModelSource, folder: Path) -> None:
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(source.folder).save_pretrained(folder)
    except OSError:  # the file is optional
        return
