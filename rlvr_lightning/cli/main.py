"""The command line: a verb, `conf=EXPERIMENT`, and Hydra overrides.

The verb decides what is done with the run; everything else is Hydra's. Errors addressed to the user end in one line
and exit code 2.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlvr_lightning.errors import INTERRUPTED, RLVRError

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
Reinforcement learning with verifiable rewards, on PyTorch Lightning.

  python -m rlvr_lightning VERB [conf=EXPERIMENT] [KEY=VALUE ...] [OPTIONS]      (or: rlvr-lightning VERB ...)

Verbs
  fit         train; writes checkpoints, logs, rollouts and curves to an output folder
  validate    avg@k and pass@k of the model, or of a run's checkpoint, on the held-out problems, with their errors
  test        the same, kept as JSON and Markdown and a line a problem; with benchmark=[NAME,...] on benchmarks instead
  predict     sample responses to the held-out problems into predictions.jsonl.gz
  export      write a run's policy as a Hugging Face folder (adapters merged)
  plan        what a run will need of memory, disk and work, and whether it fits, before a weight is loaded
  verify      judge the responses in a file: verify FILE.jsonl verifier=NAME output=OUT.jsonl
  compare     two policies on the same problems: compare FIRST SECOND, files or folders of test or predict
  study       all runs of a study and its report: study conf=NAME, or study report=DIR
  pretrain    make a bundled model from nothing
  completion  print the shell completion script (bash, zsh or fish)

Experiments
  {experiments}

Groups, swapped by GROUP=NAME
  {groups}

Options
  -m, --multirun      sweep over comma-separated values
  --cfg job           show the composed configuration and stop
  --config-dir DIR    add your own groups and experiments (DIR/experiment/NAME.yaml, DIR/partitioner/NAME.yaml, ...)
  --version, --help

Examples
  python -m rlvr_lightning fit conf=archer
  python -m rlvr_lightning plan conf=lp_reg_qwen2_5_32b
  python -m rlvr_lightning fit conf=archer partitioner.quantile=0.9 regularizer=[lp_reg] seed=1
  python -m rlvr_lightning fit conf=grpo model.path=DIR task=jsonl task.path=train.jsonl.gz engine=vllm
  python -m rlvr_lightning fit -m conf=grpo,archer,lp_reg seed=0,1,2
  python -m rlvr_lightning fit resume=outputs/RUN trainer.max_epochs=200
  python -m rlvr_lightning export resume=outputs/RUN
  python -m rlvr_lightning test benchmark=[gsm8k,math500] evaluation.folder=DATA model.path=DIR
  python -m rlvr_lightning compare outputs/RUN/benchmarks/step_00000000 outputs/RUN/benchmarks/step_00000200
  python -m rlvr_lightning verify answers.jsonl verifier=math output=verdicts.jsonl
"""
# What a disk says that takes no more, or nothing at all.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Verbs that make no run.
OWN_CONFIGS = ("pretrain", "verify")
SHELLS = ("bash", "zsh", "fish")
# Hydra's options that take a value; they must come before the overrides.
VALUED = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--info",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: without the program's name; the process's own by default.

    Returns:
        The exit code: 0; 2 after an error addressed to the user, 1 after another one, and with several ranks after any;
        130 after Ctrl-C.
    """
    from rlvr_lightning.training import watch

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["verify"]:
        arguments = ["verify", *file_named(arguments[1:])]
    try:
        return _dispatch(arguments)
    except RLVRError as error:
        watch.fail(error)
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        watch.interrupt()
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except OSError as error:
        watch.fail(error)
        if error.errno not in DISK:
            raise
        sys.stderr.write(f"error: {error.filename or 'the output folder'} cannot be written: {error.strerror}\n")
        return 1
    except Exception as error:
        watch.fail(error)
        raise


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0
    if arguments[0] in ("--version", "-V"):
        import rlvr_lightning

        sys.stdout.write(f"rlvr_lightning {rlvr_lightning.__version__}\n")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if "--help" in rest or "-h" in rest:
        sys.stdout.write(_usage())
        return 0
    if verb == "completion":
        from rlvr_lightning.cli.completion import completion

        sys.stdout.write(completion(rest))
        return 0
    if verb == "study":
        from rlvr_lightning.cli.study import study

        return study(rest)
    if verb == "compare":
        from rlvr_lightning.cli.compare import compare

        compare(rest)
        return 0
    from rlvr_lightning.cli.verbs import VERBS

    if verb not in VERBS:
        from rlvr_lightning.errors import ConfigError, nearest

        raise ConfigError(f"there is no verb {verb}; {nearest(verb, [*VERBS, 'compare', 'study', 'completion'])}")
    return _compose_and_run(VERBS[verb], verb, rest)


def _usage() -> str:
    from rlvr_lightning.config.compose import config_dir

    def names(folder: str) -> str:
        return ", ".join(sorted(file.stem for file in (config_dir() / folder).glob("*.yaml")))

    groups = [f"{path.name:<12} {names(path.name)}" for path in sorted(config_dir().iterdir()) if path.is_dir()]
    shown = "\n  ".join(group for group in groups if not group.startswith("experiment"))
    return USAGE.format(experiments=names("experiment"), groups=shown)


def reorder(arguments: Sequence[str]) -> list[str]:
    """Options first: Hydra's parser wants them before the overrides."""
    options, overrides, rest = [], [], list(arguments)
    while rest:
        item = rest.pop(0)
        if item.startswith("-"):
            options.append(item)
            if item in VALUED and rest:
                options.append(rest.pop(0))
        else:
            overrides.append(item)
    return [*options, *overrides]


def file_named(arguments: Sequence[str]) -> list[str]:
    """`FILE` as `file=FILE`: the one argument that is neither an option, nor an option's value, nor an override."""
    named, previous = list[str](), ""
    for item in arguments:
        plain = not item.startswith("-") and previous not in VALUED and "=" not in item
        quoted = item.replace("'", "\\'")
        named.append(f"file='{quoted}'" if plain else item)
        previous = item
    return named


def at_home(argument: str) -> str:
    """`KEY=~/PATH` with the user's home, which not every shell puts there and Hydra does not understand."""
    key, _, value = argument.partition("=")
    return f"{key}={Path(value).expanduser()}" if value.startswith("~/") else argument


def _compose_and_run(verb: Callable[[DictConfig], None], name: str, arguments: Sequence[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rlvr_lightning.config.compose import config_dir, experiment_override, explain
    from rlvr_lightning.config.resuming import settled, split
    from rlvr_lightning.training import watch

    # Before torch is imported: with huge pages the chunks of logits, mapped anew each time, cost a CPU half as much.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    watch.begin_where_launched()
    # A resumed run's overrides are of its own configuration, which Hydra does not know.
    translated, later = split([experiment_override(at_home(argument)) for argument in reorder(arguments)], VALUED)
    original = sys.argv
    failures: list[RLVRError] = []

    def job(cfg: DictConfig) -> None:
        # Lightning starts the other ranks of a machine with the command line it finds here.
        sys.argv = [original[0], name, *arguments]
        try:
            verb(settled(cfg, later, training=name == "fit"))
        except (RLVRError, HydraException, OmegaConfBaseException) as error:
            # Hydra would print a traceback; a sweep goes on with its other runs.
            told = error if isinstance(error, RLVRError) else explain(error)
            watch.fail(told)
            failures.append(told)

    # Hydra prints tracebacks of its own unless asked to raise.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [original[0], *translated]
    primary = name if name in OWN_CONFIGS else "config"
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=primary)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    finally:
        sys.argv = original
    for failure in failures[1:]:
        sys.stderr.write(f"error: {failure}\n")
    if failures:
        raise failures[0]
    return 0
