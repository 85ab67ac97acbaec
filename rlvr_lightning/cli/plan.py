"""`plan`: what a run will need, before a weight is loaded."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from rlvr_lightning.config.build import build_module
from rlvr_lightning.config.checks import check_kinds
from rlvr_lightning.config.components import model_source
from rlvr_lightning.config.derived import DerivedNumbers
from rlvr_lightning.config.planned import setup_of, total
from rlvr_lightning.training.forecast.forecast import TOLERANCE, Forecast, Line, forecast
from rlvr_lightning.training.forecast.remedies import remedies
from rlvr_lightning.training.forecast.setup import GIB


def plan_run(cfg: DictConfig) -> Forecast:
    """The forecast of a configuration.

    Raises:
        RLVRError: a setting is wrong, or the model's shape is nowhere here.
    """
    check_kinds(cfg)
    return forecast(setup_of(cfg, build_module(cfg, model_source(cfg))))


def show_plan(cfg: DictConfig, console: Console) -> Forecast:
    """Print derived numbers, every line of the forecast, the verdict, and what would help."""
    planned = plan_run(cfg)
    DerivedNumbers.of(cfg).show()
    console.print(_table(planned))
    console.print(_work(planned))
    console.print(verdict(planned), soft_wrap=True)
    return planned


def verdict(planned: Forecast) -> str:
    """`fits`, or `does not fit` with what is short and three ways to make it fit; one line each."""
    setup = planned.setup
    place = "each GPU" if setup.accelerator == "gpu" else "this host"
    if planned.fits:
        there = setup.device_memory if setup.accelerator == "gpu" else setup.host_memory
        known = f" of {there / GIB:.1f}" if there else ", with no memory known to compare with (hardware.gpu_memory_gb)"
        return f"fits: {total(planned) / GIB:.1f} GiB{known} on {place} (forecasts are right within {TOLERANCE:.0%})"
    lines = [
        f"does not fit: {short.needed / GIB:.1f} GiB needed on {short.place}, {short.there / GIB:.1f} there"
        for short in planned.shortages
    ]
    ways = remedies(setup)
    lines += [f"  fits with {' '.join(way.overrides)}: {total(way.forecast) / GIB:.1f} GiB" for way in ways]
    return "\n".join(lines if ways else [*lines, "  no setting known here makes it fit"])


def _table(planned: Forecast) -> Table:
    setup = planned.setup
    table = Table(title=f"what it needs: {setup.ranks} rank(s) on {setup.num_nodes} host(s)", title_justify="left")
    table.add_column("memory")
    table.add_column("GiB", justify="right")
    table.add_column("when")
    for line in planned.device:
        _add(table, line, line.phase or "always")
    there = "" if setup.device_memory is None else f" of {setup.device_memory / GIB:.1f}"
    table.add_row("each rank at once", f"{planned.device_total / GIB:.2f}", f"most in: {planned.peak_phase}{there}")
    table.add_section()
    for line in planned.host:
        _add(table, line, "each host")
    there = "" if setup.host_memory is None else f" of {setup.host_memory / GIB:.1f} to spare"
    ranks = "with its ranks' " if setup.accelerator == "cpu" else ""
    table.add_row("each host", f"{planned.host_total / GIB:.2f}", f"{ranks}in all{there}")
    table.add_section()
    for line in planned.disk:
        _add(table, line, "disk, at most")
    return table


def _add(table: Table, line: Line, when: str) -> None:
    table.add_row(line.name, f"{line.size / GIB:.2f}", when)


def _work(planned: Forecast) -> Table:
    done, table = planned.work, Table(title="work, if every response is as long as it may be", title_justify="left")
    for name in ("part", "tokens", "PFLOP"):
        table.add_column(name, justify="left" if name == "part" else "right")
    phase = planned.setup.rollout
    scored = phase.prompts_per_epoch * phase.group_size * phase.length * planned.setup.kept_passes
    table.add_row("sampling, a phase", f"{done.phase_tokens:,.0f}", f"{done.sampling / 1e15:,.1f}")
    table.add_row("scoring, a phase", f"{scored:,.0f}", f"{done.scoring / 1e15:,.1f}")
    table.add_row("update, an optimizer step", f"{done.step_tokens:,.0f}", f"{done.update / 1e15:,.1f}")
    steps = f"{done.steps} optimizer step{'s' * (done.steps > 1)}, a phase"
    table.add_row(steps, f"{done.steps * done.step_tokens:,.0f}", f"{done.steps * done.update / 1e15:,.1f}")
    return table
