"""Drawing ahead against taking turns: wall time for the same number of responses, and what is learned.

    python benchmarks/lag.py FOLDER [--seeds 5] [--threads 1] [--overrides ...]

Each seed is run with `rollout.max_lag` 0 and 1, one after the other, on vLLM's server. A run that is whole in FOLDER is not
run again. Time is that of the epochs (`perf/time/*`, without the engine's start), a token, since the runs' responses differ in
length; accuracy is avg@8 on held-out problems, its difference paired by seed with Student's interval.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rlvr_lightning.callbacks.table import read_table

LAGS = (0, 1)
# Two-sided 95 % quantiles of Student's t for n - 1 differences.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
PHASES = ("sampling", "waiting", "syncing", "verifying", "scoring", "updating", "other")


@dataclass(frozen=True)
class Result:
    """Of one run: seconds of the phases, tokens, and held-out accuracy."""

    seconds: dict[str, float]
    tokens: float
    accuracy: float

    @property
    def per_token(self) -> float:
        """Time of a token [microseconds]."""
        return sum(self.seconds.values()) / self.tokens * 1e6


def run(folder: Path, lag: int, seed: int, threads: int, overrides: list[str]) -> Result:
    """A whole run, or what is there of it already."""
    if not (folder / "done").exists():
        command = [sys.executable, "-m", "rlvr_lightning", "fit", "engine=vllm_server", f"rollout.max_lag={lag}"]
        command += [f"seed={seed}", "trainer.accelerator=cpu", "trainer.show_every_n_epochs=0", *overrides]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run([*command, f"output_dir={folder}"], check=True, stdout=log, stderr=log, env=environment)
        (folder / "done").touch()
    rows = read_table(folder / "logs" / "metrics.csv")
    epochs = [row for row in rows if "reward/mean" in row]
    seconds = {name: sum(float(row[f"perf/time/{name}"]) for row in epochs) for name in PHASES}
    tokens = sum(float(row["rollout/responses"]) * float(row["rollout/response_tokens"]) for row in epochs)
    return Result(seconds, tokens, float([row for row in rows if "val/avg_at_k" in row][-1]["val/avg_at_k"]))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    parser.add_argument("--threads", type=int, default=1, help="of the trainer")
    parser.add_argument("--overrides", nargs="*", default=["conf=archer"])
    given = parser.parse_args()
    results: dict[int, list[Result]] = {lag: [] for lag in LAGS}
    for seed in range(given.seeds):
        for lag in LAGS:
            results[lag].append(run(given.folder / f"lag_{lag}_seed_{seed}", lag, seed, given.threads, given.overrides))
            one = results[lag][-1]
            print(f"seed {seed} lag {lag}: {one.per_token:.0f} us a token, avg@8 {one.accuracy:.3f}", flush=True)
    for lag in LAGS:
        total = sum(sum(one.seconds.values()) for one in results[lag])
        shares = {name: sum(one.seconds[name] for one in results[lag]) / total for name in PHASES}
        print(f"lag {lag}: {total:.0f} s;", ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    none, ahead = (results[lag] for lag in LAGS)
    ratio = statistics.median(b.per_token / a.per_token for a, b in zip(none, ahead, strict=True))
    differences = [b.accuracy - a.accuracy for a, b in zip(none, ahead, strict=True)]
    half = STUDENT[given.seeds] * statistics.stdev(differences) / given.seeds**0.5
    means = [statistics.fmean(one.accuracy for one in of) for of in (none, ahead)]
    print(f"time a token, lag 1 over lag 0: {ratio:.2f} (median of {given.seeds})")
    print(f"avg@8: {means[0]:.3f} and {means[1]:.3f}, difference {statistics.fmean(differences):+.3f} +- {half:.3f}")


if __name__ == "__main__":
    main()
