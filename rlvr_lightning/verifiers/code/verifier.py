"""Programs judged by running them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict, VerdictKind
from rlvr_lightning.verifiers.code.compare import RULES
from rlvr_lightning.verifiers.code.program import CONVENTIONS, extract_program, fenced_blocks, sources_of
from rlvr_lightning.verifiers.code.run import Program
from rlvr_lightning.verifiers.code.tests import Cases, Script, Tests, read_tests
from rlvr_lightning.verifiers.sandbox.choose import Strength, choose_sandbox
from rlvr_lightning.verifiers.sandbox.limits import Limits

Reward = Literal["all", "share", "first_failure"]
# Of processor time, for a response that stands without a fence.
COMPILE_SECONDS = 5.0
KINDS = ("check", "asserts", "functional", "stdin", "call", "livecodebench")


@dataclass
class Outcome:
    """What the tests of one program came to.

    Args:
        passed, total: tests.
        before_failure: tests passed before the first that failed.
        timeout: whether one took too long.
    """

    passed: int = 0
    total: int = 0
    before_failure: int = 0
    timeout: bool = False

    @property
    def correct(self) -> bool:
        """Whether all passed."""
        return self.passed == self.total


class CodeVerifier:
    """Right when the response's program passes all tests of its problem, run in a sandbox.

    The problem's `meta` holds the row: `tests` in one of the layouts of `tests.read_tests`, or a LiveCodeBench record.

    Args:
        extract: where the program stands: `auto` (the last fenced block, or a response without any as a whole),
            `last_block`, `first_block`, `all_blocks`, `whole`.
        reward: `all` (1 if every test passes, else 0), `share` (of tests that pass), `first_failure` (of tests before the
            first that fails).
        sandbox: `auto` (the strongest that works here), `bubblewrap`, `landlock` or `rlimits`: that one or none.
        timeout_s: by kind of tests: of all assertions of a problem, of each case of `stdin`, `call` and LiveCodeBench
            [seconds of processor time; three times as long by the clock]; a row's own `time_limit_s` may be longer.
        limits: of what a program may use.

    Raises:
        ConfigError: an unknown convention, reward or sandbox, or no time.
        HardwareError: the sandbox asked for does not work here.
    """

    judges: ClassVar[str] = "code"
    # A run waits for other processes and has limits of its own: threads are enough, and none of them can be hung.
    concurrency: ClassVar[int] = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    # A program that sleeps is waited for three times as long as it may compute.
    most_concurrency: ClassVar[int] = 4 * concurrency

    def __init__(
        self,
        extract: str = "auto",
        reward: Reward = "all",
        sandbox: Strength = "auto",
        timeout_s: Mapping[str, float] | None = None,
        limits: Limits | None = None,
    ) -> None:
        if extract not in CONVENTIONS:
            raise ConfigError(f"CodeVerifier.extract must be {', '.join(CONVENTIONS)}; got {extract!r}")
        if reward not in get_args(Reward):
            raise ConfigError(f"CodeVerifier.reward must be {', '.join(get_args(Reward))}; got {reward!r}")
        self.extract, self.reward, self.sandbox = extract, reward, sandbox
        self.timeout_s = {**dict.fromkeys(KINDS, 6.0), "check": 3.0, "asserts": 3.0, **(timeout_s or {})}
        for kind, seconds in self.timeout_s.items():
            if kind not in KINDS or not seconds > 0:
                raise ConfigError(
                    f"CodeVerifier.timeout_s.{kind} must be above 0, of {', '.join(KINDS)}; got {seconds}"
                )
        self.limits = limits or Limits()
        self._sandbox = choose_sandbox(sandbox)

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """Run the response's program on the problem's tests.

        Args:
            response: what the model wrote.
            problem: its `meta` is the row with the tests.

        Returns:
            The verdict; `extracted` is the program's first 200 characters, None where there is no program: no block of
            code, or without any block a text that is no Python.

        Raises:
            DataError: the row's tests cannot be read.
            VerifierError: the sandbox failed; the program is not to blame.
        """
        tests = read_tests(problem.meta, f"problem {problem.id}")
        code = extract_program(response, self.extract)
        if code is None:
            return Verdict(0.0, False, None, "unparsable")
        sources = self._sources(code, tests, problem)
        outcome = self._judge(sources, tests)
        guessed = self.extract == "auto" and not fenced_blocks(response)
        if guessed and not outcome.passed and not self._is_python(sources[-1]):
            return Verdict(0.0, False, None, "unparsable")
        reached = outcome.before_failure if self.reward == "first_failure" else outcome.passed
        reward = float(outcome.correct) if self.reward == "all" else reached / max(1, outcome.total)
        kind: VerdictKind = "correct" if outcome.correct else "timeout" if outcome.timeout else "wrong"
        return Verdict(reward, outcome.correct, code[:200], kind)

    @staticmethod
    def _sources(code: str, tests: Tests, problem: Problem) -> list[str]:
        """What is run, one after the other; the first is the tests' own."""
        asked = str(problem.meta.get("problem") or problem.messages[-1]["content"]) if tests.kind == "check" else ""
        entry = tests.entry_point if isinstance(tests, Script) and tests.kind == "check" else None
        return [tests.setup, *sources_of(code, asked, entry)]

    def _is_python(self, source: str) -> bool:
        """Whether it can be compiled, which is tried inside as well: what a response makes a compiler do is its own affair."""
        compiles = f"compile({source!r}, '<response>', 'exec')"
        with Program(self._sandbox, self.limits, [compiles], serves=False, timeout_s=COMPILE_SECONDS) as program:
            ended, _ = program.run("", COMPILE_SECONDS)
            program.finish()
        return ended == "exit 0"

    def _judge(self, sources: list[str], tests: Tests) -> Outcome:
        seconds = self.timeout_s[tests.kind]
        if isinstance(tests, Script):
            return self._assertions(sources, tests, seconds)
        return self._cases(sources, tests, max(seconds, tests.time_limit_s or 0.0))

    def _assertions(self, sources: list[str], tests: Script, seconds: float) -> Outcome:
        with Program(self._sandbox, self.limits, sources, serves=True, timeout_s=seconds) as program:
            stop = self.reward != "share"
            counts = program.assertions(tests.setup, tests.code, stop=stop, timeout_s=seconds)
            program.finish()
        passed = int(counts["passed"])
        whole = not counts["failed"] and counts["ended"] is None and passed > 0
        # A loop asserts more often than its text, a branch not taken less often.
        total = passed if whole else max(int(counts["total"]), passed + int(counts["failed"]), passed + 1)
        return Outcome(passed, total, passed, timeout=counts["ended"] == "timeout")

    def _cases(self, sources: list[str], tests: Cases, seconds: float) -> Outcome:
        outcome = Outcome(total=len(tests.cases))
        failed = False
        serves = tests.function is not None
        with Program(
            self._sandbox, self.limits, sources, serves=serves, timeout_s=seconds * len(tests.cases)
        ) as program:
            for case in tests.cases:
                if tests.function is None:
                    ended, output = program.run(case.input, seconds)
                    passed = ended == "exit 0" and RULES[tests.rule](output, case.output)
                else:
                    ended, result = program.call(tests.function, case.input, seconds)
                    passed = not ended and RULES[tests.rule](result, case.output)
                outcome.passed += passed
                outcome.timeout |= ended == "timeout"
                failed |= not passed
                outcome.before_failure += not failed
                if failed and self.reward != "share":
                    break
            program.finish()
        return outcome
