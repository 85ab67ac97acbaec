"""The forecast: every line of memory, what stands on a device at once, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass

from rlvr_lightning.training.forecast import activations, host, sampling, states
from rlvr_lightning.training.forecast.setup import GIB, Setup
from rlvr_lightning.training.forecast.work import Work, work

# A forecast may be wrong by this share of itself: a run is refused only beyond it.
TOLERANCE = 0.15
# CUDA's own context and the libraries' and NCCL's buffers.
CONTEXT = 1.5 * GIB


@dataclass(frozen=True)
class Line:
    """Some memory.

    Args:
        name: what it is.
        size: [bytes].
        phase: when it is there; empty for always.
    """

    name: str
    size: float
    phase: str = ""


@dataclass(frozen=True)
class Shortage:
    """A place with less memory than is needed.

    Args:
        place: in words.
        needed, there: [bytes].
    """

    place: str
    needed: float
    there: float


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Args:
        setup: of the run.
        device: of each rank.
        host: of each host, besides its devices'.
        disk: of the run.
        work: tokens and operations.
    """

    setup: Setup
    device: tuple[Line, ...]
    host: tuple[Line, ...]
    disk: tuple[Line, ...]
    work: Work

    @property
    def peak_phase(self) -> str:
        """The phase that needs most of a device."""
        phases = {line.phase for line in self.device if line.phase}
        return max(sorted(phases), key=self._of)

    def _of(self, phase: str) -> float:
        return sum(line.size for line in self.device if line.phase == phase)

    @property
    def device_total(self) -> float:
        """On a device at once, at most [bytes]: what always stands there, and the largest phase."""
        return self._of("") + self._of(self.peak_phase)

    @property
    def host_total(self) -> float:
        """In a host's memory [bytes]; on the CPU the ranks' devices are in it."""
        own = sum(line.size for line in self.host)
        return own + (self.setup.devices * self.device_total if self.setup.accelerator == "cpu" else 0.0)

    @property
    def shortages(self) -> tuple[Shortage, ...]:
        """Where more is needed than is known to be there."""
        setup, found = self.setup, []
        room = sampling.engine_room(setup)
        if setup.accelerator == "gpu" and setup.device_memory is not None:
            found.append(Shortage("each GPU", self.device_total, setup.device_memory))
        if room is not None:
            found.append(Shortage("vLLM's share of each GPU", sampling.engine_least(setup), room))
        if setup.host_memory is not None:
            found.append(Shortage("this host", self.host_total, setup.host_memory))
        return tuple(shortage for shortage in found if shortage.needed > shortage.there)

    @property
    def fits(self) -> bool:
        """Whether nothing is short."""
        return not self.shortages

    @property
    def certainly_too_large(self) -> tuple[Shortage, ...]:
        """Shortages beyond what the forecast may be wrong by."""
        return tuple(each for each in self.shortages if each.needed > (1 + TOLERANCE) * each.there)


def forecast(setup: Setup) -> Forecast:
    """Work it out; nothing is loaded."""
    return Forecast(setup, (*_always(setup), *_phases(setup)), _host(setup), _disk(setup), work(setup))


def _present(*lines: Line) -> tuple[Line, ...]:
    return tuple(line for line in lines if line.size > 0)


def _always(setup: Setup) -> tuple[Line, ...]:
    here = 0 if setup.cpu_offload else 1
    return _present(
        Line("weights, float32", here * states.weights(setup)),
        Line("gradients, float32", here * states.gradients(setup)),
        Line(f"optimizer state ({setup.optimizer})", here * states.optimizer_state(setup)),
        Line("reference, float32", here * states.reference(setup)),
        Line("engine: weights", sampling.engine_weights(setup)),
        Line("engine: cache and workspace", sampling.engine_cache(setup)),
        Line("CUDA context and buffers", CONTEXT if setup.accelerator == "gpu" else 0),
    )


def _phases(setup: Setup) -> tuple[Line, ...]:
    gathered = states.gathered(setup)
    update = max(activations.logits_work(setup), activations.layer_work(setup))
    return _present(
        Line("gathered weights", gathered, "update"),
        Line("weights cast to bfloat16", states.cast_weights(setup), "update"),
        Line("the step's tokens", activations.batch(setup), "update"),
        Line("activations kept for the backward pass", _kept_beside_gradients(setup), "update"),
        Line("backward pass at work (a layer, or a chunk of logits)", update, "update"),
        Line("gathered weights", gathered, "reduction"),
        Line("gradients before they are reduced", states.gathered_gradients(setup), "reduction"),
        Line("optimizer step", states.optimizer_work(setup), "optimizer step"),
        Line("gathered weights", gathered, "scoring"),
        Line("weights cast to bfloat16", states.cast_weights(setup), "scoring"),
        Line("forward pass at work", activations.scoring_work(setup), "scoring"),
        Line("engine: drawing a batch", sampling.drawing_work(setup), "sampling"),
        Line("checkpoint being written, gradients freed", host.copy_beside_sampling(setup), "sampling"),
        Line("handing weights to the engine", sampling.sync_work(setup), "syncing"),
    )


def _kept_beside_gradients(setup: Setup) -> float:
    """In a step of one micro-batch gradients come as activations go: what stands is the larger of the two."""
    kept = activations.kept(setup)
    return kept if setup.micro_batches > 1 else max(kept - states.gradients(setup), 0.0)


def _host(setup: Setup) -> tuple[Line, ...]:
    return _present(
        Line("processes and libraries", host.processes(setup)),
        Line("rollouts of a phase", host.rollouts(setup)),
        Line("offloaded weights, gradients, optimizer state", host.offloaded(setup)),
        Line("checkpoint being written", host.checkpoint_copy(setup)),
    )


def _disk(setup: Setup) -> tuple[Line, ...]:
    return _present(
        Line(f"checkpoints ({host.CHECKPOINTS} at a time)", host.checkpoints_on_disk(setup)),
        Line("rollouts of all epochs", host.rollouts_on_disk(setup)),
    )
