"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlvr_lightning.callbacks.outputs import CurvesCallback
from rlvr_lightning.types import TokenStats

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Drawing them takes as long as a small run; those of `training.drawn` have them, and every run in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CurvesCallback, "on_fit_end", lambda *_: None)
        yield


# What takes many minutes is collected only where it is asked for by its marker.
APART = ("soak", "conformance", "learning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has a nox session of its own."""
    left = [name for name in APART if name not in config.option.markexpr]
    apart = [item for item in items if any(item.get_closest_marker(name) is not None for name in left)]
    config.hook.pytest_deselected(items=apart)
    items[:] = [item for item in items if item not in apart]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that read it are skipped elsewhere."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real data is not part of the repository")
    return folder


def random_stats(seed: int, rows: int = 6, length: int = 9, *, off_policy: bool = True) -> TokenStats:
    """Float64 statistics of ragged responses with both signs of advantage."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(rows, length, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    mask = torch.arange(length) < lengths
    logprobs = uniform(-4, -0.01)
    old = logprobs + uniform(-0.6, 0.6) if off_policy else logprobs.clone()
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, length) * mask
    entropy = uniform(0, 3)
    return TokenStats(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=old,
        advantages=advantages,
        loss_mask=mask,
        ref_logprobs=logprobs.detach() + uniform(-1, 1),
        statistics={"entropy": entropy + uniform(-0.2, 0.2), "proxy_logprobs": logprobs.detach() + 0.1},
        old_statistics={"entropy": entropy, "proxy_logprobs": old + 0.1},
    )
