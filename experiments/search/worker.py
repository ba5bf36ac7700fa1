"""A worker process of a sweep: `python -m experiments.search.worker RUN CORES`.

Reads jobs as lines of JSON from its standard input and answers with lines of JSON:

    {"fixed": {...}, "points": [[number, {...}], ...]}     train these
    {"say": "ready", "width": 1}                           give me work, this many points at once
    {"say": "tick", "taken": 50, ...}                      how it goes
    {"say": "record", "record": {...}}                     a point is finished

It keeps to its cores, and ends with its standard input, whatever it is at: there is no more to do,
or the process that started it is gone.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

TICK_SECONDS = 0.3  # at least, between two


def main(folder: Path, cores: list[int]) -> None:
    """Train until standard input ends."""
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
        taken += tick.taken
        if time.monotonic() - told > TICK_SECONDS:
            told = time.monotonic()
            say("tick", taken=taken, step=tick.step)
            taken = 0

    lines = listen(0)
    say("ready", width=trainer.width)
    free_since = time.monotonic()
    while True:
        job = json.loads(lines.get())
        waited = time.monotonic() - free_since
        points = [SweepPoint(number, options) for number, options in job["points"]]
        for record in trainer.train(job["fixed"], points, watch):
            say("record", record=record)
        say("ready", width=trainer.width, waited=waited)
        free_since = time.monotonic()


def listen(pipe: int) -> queue.SimpleQueue[bytes]:
    """The lines of a pipe as they come. A thread reads them, and ends the process with the pipe.

    Args:
      pipe: its file descriptor; a buffered file would be locked where this process ends itself.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        rest = b""
        while block := os.read(pipe, 1 << 16):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


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
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
