"""vLLM's cache on a CPU: what responses can fill, and no more than is allowed."""

from __future__ import annotations

from pathlib import Path

from rlvr_lightning.models.source import bundled_model
from rlvr_lightning.rollout.engines.vllm.cpu_cache import GIB, cache_bytes


def test_the_cache_holds_all_responses_and_no_more_than_allowed(tmp_path: Path) -> None:
    # The bundled model: 4 layers, keys and values of 128 numbers each.
    token = 2 * 4 * 128
    assert cache_bytes(str(bundled_model()), 1, 256, 100, 4) == 256 * 256 * token * 4
    assert cache_bytes(str(bundled_model()), 1, 8, 128, 2) == 8 * 384 * token * 2
    assert cache_bytes(str(bundled_model()), 1, 256, 8192, 4) == GIB
    assert cache_bytes(str(bundled_model()), 3, 256, 8192, 4) == 3 * GIB
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert cache_bytes(str(tmp_path), 2, 1, 16, 4) == 2 * GIB
