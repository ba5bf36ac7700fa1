"""A worker process of a sweep: `python -m experiments.search.worker RUN CORES PARENT`.

Reads jobs as lines of JSON from its standard input and answers with lines of JSON:

    {"fixed": {...}, "points": [[number, {...}], ...]}     train these
    {"say": "ready", "width": 1}                           give me work, this many points at once
    {"say": "tick", "taken": 50, ...}                      how it goes
    {"say": "record", "record": {...}}                     a point is finished

It keeps to its cores, and ends with its standard input or with the process that started it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

TICK_SECONDS = 0.3  # at least, between two


def main(folder: Path, cores: list[int], parent: int) -> None:
    """Train until there is no more to do."""
    # Before JAX counts them: on one core it starts no threads that wait for each other.
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the log

    def say(kind: str, **values: Any) -> None:
        answers.write(json.dumps({"say": kind, **values}) + "\n")
        answers.flush()

    from experiments import run_folder
    from experiments.search.config import Config
    from experiments.search.points import SweepPoint

    config = run_folder.read_config(folder, Config)
    prepare_jax(config.data)
    from experiments.search.training import Trainer

    trainer = Trainer(config, folder)
    told = 0.0
    taken = 0

    def watch(tick: Any) -> None:
        nonlocal told, taken
        if os.getppid() != parent:  # it was killed
            os._exit(1)
        taken += tick.taken
        if time.monotonic() - told > TICK_SECONDS:
            told = time.monotonic()
            say("tick", taken=taken, step=tick.step)
            taken = 0

    say("ready", width=trainer.width)
    free_since = time.monotonic()
    for line in sys.stdin:
        waited = time.monotonic() - free_since
        job = json.loads(line)
        points = [SweepPoint(number, options) for number, options in job["points"]]
        for record in trainer.train(job["fixed"], points, watch):
            say("record", record=record)
        say("ready", width=trainer.width, waited=waited)
        free_since = time.monotonic()


def prepare_jax(data: Any) -> None:
    """As the command line does it: full precision, and compiled programs kept for the next run.

    Args:
      data: DataConfig, which may say where they are kept.
    """
    import jax

    from experiments.compiled import keep_compiled
    from experiments.flags import MATMUL_PRECISION
    from lm.data.corpus import cache_folder

    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION)
    if jax.config.values["jax_enable_compilation_cache"]:
        keep_compiled(cache_folder(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
