"""What every session imports, once for all of them."""

import torch

import rlvr_lightning.callbacks.table
import rlvr_lightning.cli.verbs
import rlvr_lightning.config.build
import rlvr_lightning.rollout.engines.transformers_engine  # noqa: F401

torch.set_num_threads(1)
