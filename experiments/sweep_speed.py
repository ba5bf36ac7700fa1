"""What does a sweep save over runs one by one?

32 seeds x 4 learning rates of a small LSTM on Austen, as `sweep` trains them, against the same
128 runs (1) as processes of their own, `./launch.sh train` 128 times; (2) one after another in
one process, each as train has it, with its checkpoints and figures; (3) one after another in one
process through one compiled program, with nothing saved. Of (1) to (3) a few runs are timed and
the rest is worked out from them: the first run, and 127 times the median of the later ones.
Everything counts, from the start of the first process; programs that an earlier run has compiled
are kept for all alike.

Prediction: 3 times faster than (1), 1.5 times than (2), and than (3) as far as a core of its own
beats half of every step, which a small network's steps are too short for.

    ./launch.sh sweep_speed                       three to four minutes on 2 cores
    ./launch.sh sweep_speed --samples=16 --steps=400
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of sweep_speed."""

    hidden_size: int = option(32, "H, and the embedding's size", least=1, most=8192)
    vocabulary: int = option(1000, "V", least=10)
    steps: int = option(100, "training steps of a run", least=1)
    seeds: int = option(32, "seeds of the sweep", least=1, most=10_000)
    rates: int = option(4, "learning rates of the sweep", least=1, most=1000)
    samples: int = option(5, "runs of the others that are really trained", least=3, most=1000)
    run: str = option("", "folder of the run; empty: runs/sweep_speed-<date>-<time>")

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from tqdm import tqdm

from experiments import run_folder

ROOT = Path(__file__).parents[1]
RATES = 1.0, 10.0  # from, to


def run(config: Config) -> Path:
    """Time, print, save. Returns the run's folder."""
    folder = run_folder.create(config.run, "sweep_speed")
    run_folder.write_start(folder, config, {"name": "austen"})
    points = config.seeds * config.rates
    with tqdm(total=4, unit="way", dynamic_ncols=True) as bar:
        warm_up(config)  # what is compiled is kept for all of them
        found: dict[str, float] = {}
        for name, measure in WAYS.items():
            bar.set_description_str(name)
            found[name] = measure(config, points)
            bar.update()
    rows = [
        {"way": name, "seconds": seconds, "times the sweep": seconds / found["sweep"]}
        for name, seconds in found.items()
    ]
    print(
        f"\n{points} runs, H = {config.hidden_size}, V = {config.vocabulary}, {config.steps} steps"
    )
    print(f"{'':44}{'seconds':>9}{'times the sweep':>18}")
    for row in rows:
        print(f"{row['way']:44}{row['seconds']:>9.1f}{row['times the sweep']:>18.2f}")
    run_folder.write_json(folder / "results.json", {"points": points, "rows": rows})
    print(f"run: {folder}")
    return folder


def options(config: Config) -> list[str]:
    """What all runs have in common."""
    return [
        f"--hidden_size={config.hidden_size}",
        f"--embedding_size={config.hidden_size}",
        f"--max_vocabulary={config.vocabulary}",
        f"--steps={config.steps}",
    ]


def call(module: str, *arguments: str) -> str:
    """A module in a process of its own; what it prints.

    Raises:
      ChildProcessError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    if done.returncode:
        last = done.stderr.strip().rsplit("\n", 1)[-1]
        raise ChildProcessError(f"{module} ended with status {done.returncode}: {last}")
    return done.stdout


def warm_up(config: Config) -> None:
    """Have every program compiled once."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = f"--sweep=learning_rate={RATES[0]} seed=0:2"
        call("sweep", sweep, f"--run={folder}/sweep", *options(config))
        call("train", f"--run={folder}/train", *options(config))
        call("search.one_by_one", "program", "2", *options(config))


def time_sweep(config: Config, points: int) -> float:
    """Seconds of the whole command."""
    low, high = RATES
    rates = f"log({low},{high},{config.rates})" if config.rates > 1 else str(low)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        sweep = f"--sweep=learning_rate={rates} seed=0:{config.seeds}"
        call("sweep", sweep, f"--run={folder}/sweep", *options(config))
        return time.monotonic() - began


def time_processes(config: Config, points: int) -> float:
    """Seconds of `points` processes, from a few of them, one after another."""
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(config.samples):
            began = time.monotonic()
            call("train", f"--seed={seed}", f"--run={folder}/{seed}", *options(config))
            took.append(time.monotonic() - began)
    return points * statistics.median(took)


def time_one_process(kind: str, config: Config, points: int) -> float:
    """Seconds of `points` runs in one process, from the first and a few after it."""
    found: Any = json.loads(
        call("search.one_by_one", kind, str(config.samples), *options(config)).splitlines()[-1]
    )
    return float(found["first"] + (points - 1) * statistics.median(found["each"]))


WAYS = {
    "sweep": time_sweep,
    "train, a process each": time_processes,
    "train, one process": lambda config, points: time_one_process("train", config, points),
    "one program, one process, nothing saved": lambda config, points: time_one_process(
        "program", config, points
    ),
}


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
