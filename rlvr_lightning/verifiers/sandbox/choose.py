"""The strongest sandbox that works here, found out by running it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

from rlvr_lightning.errors import ConfigError, HardwareError, MissingDependencyError, VerifierError
from rlvr_lightning.verifiers.code.run import Program
from rlvr_lightning.verifiers.sandbox.bubblewrap import Bubblewrap
from rlvr_lightning.verifiers.sandbox.landlock import Landlock
from rlvr_lightning.verifiers.sandbox.limits import Limits
from rlvr_lightning.verifiers.sandbox.protocol import Sandbox
from rlvr_lightning.verifiers.sandbox.rlimits import Rlimits

Strength = Literal["auto", "bubblewrap", "landlock", "rlimits"]
PROGRAM, TEST = "def probe(x): return x + 1", "assert probe(1) == 2"
PROBE_SECONDS = 20.0

log = logging.getLogger(__name__)


# Strongest first.
KINDS: dict[str, Callable[[], Sandbox]] = {"bubblewrap": Bubblewrap, "landlock": Landlock, "rlimits": Rlimits}


@cache
def failure(strength: str) -> str | None:
    """Why a kind does not work here, or None: a right program has passed its test in it."""
    try:
        with Program(KINDS[strength](), Limits(), [PROGRAM], serves=True, timeout_s=PROBE_SECONDS) as program:
            counts = program.assertions("", TEST, stop=True, timeout_s=PROBE_SECONDS)
            program.finish()
    except (VerifierError, MissingDependencyError, HardwareError) as error:
        return str(error)
    return None if counts["passed"] == 1 and not counts["failed"] else f"a right program fails in it: {counts}"


@cache
def _announce(name: str) -> None:
    """Say once which sandbox is in force."""
    log.info("sandbox for candidate programs: %s", name)
    warning = KINDS[name]().warning
    if warning is not None:
        log.warning("%s", warning)


def choose_sandbox(strength: Strength) -> Sandbox:
    """The sandbox asked for; `auto` is the strongest that works. It is logged, with a warning if it has one.

    Raises:
        ConfigError: there is no such kind.
        HardwareError: the kind asked for does not work here; never a weaker one instead.
    """
    if strength not in get_args(Strength):
        raise ConfigError(f"verifier.sandbox must be {', '.join(get_args(Strength))}; got {strength!r}")
    reasons: dict[str, str | None] = {}
    for name in KINDS if strength == "auto" else (strength,):
        reasons[name] = failure(name)
        if reasons[name] is None:
            _announce(name)
            return KINDS[name]()
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise HardwareError(
        f"verifier.sandbox={strength} does not work here: {told}; verifier.sandbox=auto takes what does"
    )
