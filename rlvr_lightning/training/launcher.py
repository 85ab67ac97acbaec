"""How the processes of a run are started and watched.

Lightning's own observer kills all processes, its own with them, when a child has ended badly: without a message, with exit
code 137, and only on its own machine. `watch.py` takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import lightning as L
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from rlvr_lightning.training.meeting import FIRST_RANK, Meeting
from rlvr_lightning.training.watch import begin, look_after

# A rank that hangs without dying is found out by the others' collectives. Ranks may sample for long before they meet.
COLLECTIVE_LIMIT = timedelta(hours=1)


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine where nobody else has, and watches over all."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Call `function` on every rank."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        first = environment.node_rank() * self.num_processes
        world = self.num_nodes * self.num_processes
        address = environment.main_address, environment.main_port
        begin(Meeting(*address, first + environment.local_rank(), world) if world > 1 else None)
        if not environment.creates_processes_externally:
            os.environ[FIRST_RANK] = str(first)
            self._call_children_scripts()
            look_after({first + rank: child for rank, child in enumerate(self.procs, 1)})
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class Watched(ParallelStrategy):
    """A strategy that starts its processes by the launcher above; mixed in before Lightning's."""

    def _configure_launcher(self) -> None:
        sizes = cast(Any, self)
        assert self.cluster_environment is not None
        self._launcher = WatchedLauncher(self.cluster_environment, sizes.num_processes, sizes.num_nodes)
