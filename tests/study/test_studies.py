"""The studies that come with the package: each run can be composed, and every method is another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlvr_lightning.config.build import build_module
from rlvr_lightning.config.checks import check_kinds, check_least
from rlvr_lightning.config.components import model_source
from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.study.spec import Study

FILES = sorted((config_dir() / "study").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_study_can_be_composed(file: Path) -> None:
    settings = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    study = Study.of(settings)  # type: ignore[arg-type]
    assert study.name == file.stem
    seen = {}
    for method in study.methods:
        (job,) = (
            job for job in study.jobs(Path("out")) if (job.method, job.seed) == (method, study.seeds_of(method)[0])
        )
        cfg = compose(job.overrides)
        check_kinds(cfg)
        check_least(cfg)
        build_module(cfg, model_source(cfg))
        assert cfg.seed == job.seed
        seen[method] = OmegaConf.to_yaml(
            OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("name", "output_dir")])
        )
    assert len(set(seen.values())) == len(seen)
    # Nothing is reported of the seeds that settings were chosen on.
    assert not {seed for method in study.methods for seed in study.seeds_of(method)} & set(range(100, 105))
    titles = [study.title_of(method) for method in study.methods]
    assert len(set(titles)) == len(titles)
