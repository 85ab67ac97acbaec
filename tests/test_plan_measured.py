"""The forecast against the peak memory of real runs; `benchmarks/plan.py` has all cases, docs/scale.md their figures."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "plan.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = spec_from_file_location("benchmarks_plan", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("size", "way"), [("20M", "plain"), ("60M", "recomputed"), ("20M", "fsdp x 2")])
def test_the_forecast_is_within_15_percent_of_the_peak(
    benchmark: ModuleType, tmp_path: Path, size: str, way: str
) -> None:
    case = benchmark.measure(benchmark.make_model(tmp_path / size, size), way)
    assert abs(case.error) < 0.15, case
