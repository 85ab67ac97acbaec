"""Recompute a folder of golden cases through the public components: `python tests/conformance.py DIR`.

Each case is a `.safetensors` file with float64 tensors and, under the metadata key `meta`, the algorithm, its settings
and scalar expectations as JSON. Exit status 1 if any case fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from golden_cases import PARTS, Computed, Meta, Tensors, compute, read
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rlvr_lightning.errors import RLVRError
from rlvr_lightning.methods.advantages.group_relative import GroupRelative
from rlvr_lightning.methods.advantages.rloo import RLOO
from rlvr_lightning.methods.constraints.kl import kl_estimate


@dataclass(frozen=True)
class Check:
    """One comparison: the error seen and the most that passes."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # nan fails


def checks(meta: Meta, tensors: Tensors) -> Iterator[Check]:
    """Every expectation a case holds."""
    if meta.get("kind") == "kl_estimators":
        yield from kl_checks(tensors)
    elif meta.get("kind") == "advantages":
        yield from advantage_checks(meta, tensors)
    else:
        yield from objective_checks(meta, tensors)


def objective_checks(meta: Meta, tensors: Tensors) -> Iterator[Check]:
    computed, mask = compute(meta, tensors), tensors["response_mask"].bool()
    stats, expected = computed.stats, tensors["expected_loss"][0]
    yield Check("loss", float((computed.output.loss.detach() - expected).abs() / expected.abs().clamp(min=1e-12)), 1e-7)
    yield Check("gradient", widest(computed.grad_logits, tensors["expected_grad_logits"]), 1e-7)
    seen = {
        "log_prob": stats.logprobs,
        "old_log_prob": stats.old_logprobs,
        "ref_log_prob": stats.ref_logprobs,
        "entropy": stats.statistics["entropy"],
    }
    for name, values in seen.items():
        if f"expected_{name}" in tensors and values is not None:
            yield Check(name, widest(values.detach()[mask], tensors[f"expected_{name}"][mask]), 1e-9)
    for part in PARTS:
        if f"expected_{part}_mask" in tensors:
            yield masks(f"{part} mask", computed.plan.masks[part], tensors[f"expected_{part}_mask"])
    if "expected_kept_mask" in tensors:
        yield masks("kept mask", computed.plan.masks["reasoning"], tensors["expected_kept_mask"])
    if "expected_proxy_log_prob" in tensors:
        yield from proxy_checks(computed, tensors, mask)
    if "regularized_tokens" in meta.get("expected", {}):
        chosen = int(computed.plan.masks["lp_reg"].sum())
        yield Check("regularized tokens", abs(chosen - meta["expected"]["regularized_tokens"]), 0)


def proxy_checks(computed: Computed, tensors: Tensors, mask: Tensor) -> Iterator[Check]:
    (name,) = [key for key in computed.stats.old_statistics if key.startswith("proxy_logprobs")]
    proxy, expected = computed.stats.old_statistics[name], tensors["expected_proxy_log_prob"]
    kept = proxy.isfinite() & mask
    yield Check("proxy", widest(proxy[kept], expected[kept]), 1e-9)
    # What the reference code gives a log-probability near -1e4 is dropped altogether here.
    yield masks("dropped as noise", ~proxy.isfinite() & mask, (expected < -9000) & mask)


def kl_checks(tensors: Tensors) -> Iterator[Check]:
    kinds = [key.removeprefix("expected_") for key in tensors if key.startswith("expected_")]
    for kind in kinds:
        found = kl_estimate(tensors["log_prob"], tensors["ref_log_prob"], kind)  # type: ignore[arg-type]
        yield Check(kind, widest(found, tensors[f"expected_{kind}"]), 1e-9)


def advantage_checks(meta: Meta, tensors: Tensors) -> Iterator[Check]:
    epsilon = meta["epsilon"]
    estimators = {
        "grpo": GroupRelative(epsilon=epsilon),
        "dr_grpo": GroupRelative(normalize=False, epsilon=epsilon),
        "rloo": RLOO(),
    }
    for name, estimator in estimators.items():
        worst = 0.0
        for group in tensors["group"].unique():
            members = tensors["group"] == group
            rewards = tensors["rewards"][members].unsqueeze(0)
            found = estimator(rewards, torch.ones_like(rewards, dtype=torch.bool)).squeeze(0)
            worst = max(worst, widest(found, tensors[f"expected_{name}"][members]))
        yield Check(name, worst, 1e-7)


def widest(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; 0 of nothing."""
    return float((one - other).abs().max()) if one.numel() else 0.0


def masks(name: str, one: Tensor, other: Tensor) -> Check:
    """Masks must be equal: the error is the number of tokens on which they differ."""
    return Check(name, int((one.bool() != other.bool()).sum()), 0)


def main(arguments: list[str]) -> int:
    """Compare every case of a folder and print the table."""
    console = Console(width=110)
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        console.print("usage: python tests/conformance.py DIR (a folder of golden .safetensors cases)")
        return 2
    files = sorted(Path(arguments[0]).glob("*.safetensors"))
    table = Table("case", "check", "error", "tolerance", "", title=f"{len(files)} cases", title_justify="left")
    failed, messages = 0, []
    for path in files:
        try:
            found = list(checks(*read(path)))
        except (RLVRError, KeyError, RuntimeError) as error:
            found = []
            table.add_row(path.stem, "not computed, see below", "", "", "[red]fails")
            messages.append(f"{path.stem}: {type(error).__name__}: {error}")
        for check in found:
            mark = "passes" if check.passed else "[red]fails"
            table.add_row(path.stem, check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", mark)
        failed += not found or not all(check.passed for check in found)
    console.print(table)
    for message in messages:
        console.print(message, soft_wrap=True, markup=False)
    console.print(f"{len(files) - failed} of {len(files)} cases pass")
    return int(failed > 0 or not files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
