"""Where a run's time goes: each moment belongs to one phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

# In the order of a run. `starting` is the engine, `waiting` for responses drawn ahead, `other` what is none of them: validation's
# books, checkpoints, callbacks.
PHASES = ("starting", "syncing", "sampling", "waiting", "verifying", "scoring", "updating", "other")


class Timeline:
    """Seconds of each phase since the last look.

    Args:
        clock: tells the time [seconds].
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._phase, self._since = "other", clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it ends."""
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase if phase in PHASES else "other", now

    def drain(self) -> dict[str, float]:
        """What each took; the phase under way goes on."""
        self.enter(self._phase)
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


def told(seconds: Mapping[str, float], least: float = 0.005) -> str:
    """Shares of the time, the largest first: `sampling 41%, updating 38%, ...`; those below `least` are left out."""
    total = sum(seconds.values())
    shares = [(name, value / total) for name, value in seconds.items()] if total else []
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares, key=lambda one: -one[1]) if share >= least)


def timed(timeline: Timeline, report: Mapping[str, float], passes: int) -> dict[str, float]:
    """What is logged of an epoch's time; the epoch's work is over.

    Args:
        timeline: of the run.
        report: of the epoch's responses.
        passes: times they are learned from.
    """
    seconds = timeline.drain()
    timeline.enter("other")
    tokens = report.get("rollout/responses", 0.0) * report.get("rollout/response_tokens", 0.0)
    logged = {f"perf/time/{name}": value for name, value in seconds.items()}
    logged["perf/idle_share"] = seconds["waiting"] / max(sum(seconds.values()), 1e-9)
    for name, times in (("scoring", 1), ("updating", passes)):
        logged[f"perf/{name}_tokens_per_s"] = tokens * times / max(seconds[name], 1e-9)
    return logged
