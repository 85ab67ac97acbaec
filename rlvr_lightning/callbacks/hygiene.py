"""Says before a run what training and evaluation problems have in common."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from rlvr_lightning.rollout.files import write_whole
from rlvr_lightning.tasks.hygiene import Hygiene

log = logging.getLogger(__name__)


class HygieneCallback(Callback):
    """Logs a line for each check, and writes `overlap.jsonl` where there is any.

    Args:
        folder: the output folder.
        hygiene: what the task found.
    """

    def __init__(self, folder: Path, hygiene: Hygiene) -> None:
        self.folder, self.hygiene = folder, hygiene

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before anything is loaded."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        overlap, *others = self.hygiene.lines
        path = self.folder / "overlap.jsonl"
        log.info(f"{overlap}: {path}" if self.hygiene.overlap.hits else overlap)
        for line in others:
            log.info(line)
        if self.hygiene.overlap.hits:
            write_whole(path, self.hygiene.examples())
