"""Contestants in turns: each in a process of its own, one at work at a time.

A round gives every contestant a turn of about `seconds`; the rounds follow each other, so that
whatever else the machine does falls on all alike. The first step of a turn is not counted: it
wakes threads and fills caches that another contestant has emptied, which is nothing that a
training run does at every step. The median of all counted steps stands.

Processes of their own, since thread pools and an allocator that two libraries share disturb:
in one process with PyTorch a step of ours at (20, 20, 200, 2, 10k) took 26.9 ms, alone 23.2
(PyTorch's 35.7 and 35.3). And what fails takes only itself down.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.contestants import CONTESTANTS
from experiments.speed.work import Size, Work, count_flops

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    # On a GPU, JAX would take most of the memory at once, and leave the next process none.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # The first call's time is that of a compilation.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
LOSS_TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 2e-2}  # relative
LONGEST_SECONDS = 900  # a request takes
BIAS_SHARE = 0.25  # of a loss's fall that a second bias may make a difference of; a tenth is seen
STEPS = 3, 200  # a turn has: one to warm up and at least two that count
TURNS_TO_LEARN = 1  # rounds that are not counted, in which the length of a turn is found


class RefusedError(Exception):
    """A contestant's own failure: it is left out of this size, and the table says why."""


class Process:
    """A worker and the line to it."""

    def __init__(self, name: str, precision: str):
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.worker", name, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
        )

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
          RefusedError: the contestant failed, or its process is gone.
        """
        line = json.dumps({"do": do, **values}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RefusedError(self._ended()) from None
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next answer; a process that gives none for LONGEST_SECONDS is ended."""
        assert self._process.stdout is not None
        timer = threading.Timer(LONGEST_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RefusedError(self._ended())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RefusedError(found["error"])
        return found

    def _ended(self) -> str:
        code = self._process.wait()
        self._complaints.seek(0)
        last = self._complaints.read().strip().rsplit("\n", 1)[-1]
        return f"its process ended with status {code}: {last[-160:] or 'without a word'}"

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()
        self._complaints.close()


@dataclass
class Timing:
    """What was measured of one contestant in one part of one size."""

    first_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    refused: str = ""

    def row(self, flops: int, tokens: int) -> dict[str, Any]:
        """For results.json and the tables."""
        if self.refused:
            return {"refused": self.refused}
        low, median, high = np.percentile(self.seconds, [25, 50, 75]).tolist()
        return {
            "ms": 1e3 * median,
            "ms_quartiles": [1e3 * low, 1e3 * high],
            "steps": len(self.seconds),
            "tokens_per_second": tokens / median,
            "flops_per_second": flops / median,
            "compile_seconds": max(0.0, self.first_seconds - median),
            "bytes": self.bytes,
            "losses": self.losses,
        }


@contextmanager
def processes(names: list[str], precision: str) -> Iterator[dict[str, Process | str]]:
    """A worker each, all started at once; in place of one that fails, why."""
    with ExitStack() as stack:
        started = {}
        for name in names:
            started[name] = Process(name, precision)
            stack.callback(started[name].close)
        found: dict[str, Process | str] = {}
        for name, process in started.items():
            try:
                process.hear()
                found[name] = process
            except RefusedError as refused:
                found[name] = str(refused)
        yield found


def turns(names: list[str], parts: list[str], rounds: int) -> int:
    """How often `time_size` calls `tick`."""
    entries = sum(part in CONTESTANTS[name].parts for name in names for part in parts)
    return entries * (1 + TURNS_TO_LEARN + rounds)


def time_size(
    work: Work,
    names: list[str],
    parts: list[str],
    rounds: int,
    seconds: float,
    tick: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every contestant in every part at one size.

    Args:
      names: ours among them.
      parts: step, layer.
      rounds: turns of each that count.
      seconds: about how long a turn is; at least three steps.
      tick: called with what comes next, `turns(...)` times.

    Returns:
      (a row each part, the best FLOP/s of each library's matrix products).

    Raises:
      ArithmeticError: a contestant does not do the same work: another loss.
    """
    rows, peaks = [], {}
    with processes(names, work.precision) as workers:
        for part in parts:
            there = {n: w for n, w in workers.items() if part in CONTESTANTS[n].parts}
            found = time_part(work, part, there, rounds, seconds, tick)
            check_losses(work, part, found)
            size = work.size
            flops, tokens = count_flops(work, part), size.batch * size.length
            rows.append(
                {
                    "part": part,
                    "cell": work.cell,
                    "size": str(size),
                    "flops": flops,
                    "contestants": {name: t.row(flops, tokens) for name, t in found.items()},
                }
            )
        for name, worker in workers.items():
            if isinstance(worker, Process) and name in ("ours", "torch"):
                peaks[name] = ask_peak(worker)
    return rows, peaks


def ask_peak(worker: Process) -> float:
    try:
        return float(worker.ask("peak")["flops_per_second"])
    except RefusedError:
        return 0.0


def time_part(
    work: Work,
    part: str,
    workers: dict[str, Process | str],
    rounds: int,
    seconds: float,
    tick: Callable[[str], None],
) -> dict[str, Timing]:
    """Make each contestant's program, then the rounds."""
    found = {name: Timing() for name in workers}
    where = f"{work.cell} {work.size} {part}"
    for name, worker in workers.items():
        tick(f"{where}: {CONTESTANTS[name].label} compiles")
        if isinstance(worker, str):
            found[name].refused = worker
            continue
        try:
            made = worker.ask("make", part=part, cell=work.cell, size=str(work.size))
            found[name] = Timing(made["first_seconds"], made["losses"], made["bytes"])
        except RefusedError as refused:
            found[name].refused = str(refused)
    steps = dict.fromkeys(found, STEPS[0])
    for turn in range(TURNS_TO_LEARN + rounds):
        for name, worker in workers.items():
            tick(f"{where}: {CONTESTANTS[name].label}")
            if isinstance(worker, str) or found[name].refused:
                continue
            try:
                taken = worker.ask("run", steps=steps[name])["seconds"]
            except RefusedError as refused:
                found[name].refused = str(refused)
                continue
            steps[name] = steps_in(seconds, min(taken))
            if turn >= TURNS_TO_LEARN:
                found[name].seconds += taken[1:]
    for worker in workers.values():
        if isinstance(worker, Process):
            with suppress(RefusedError):  # it has ended: nothing is left to drop
                worker.ask("drop")
    return found


def steps_in(seconds: float, each: float) -> int:
    """Steps of a turn: those that fit into its length, and one to warm up."""
    return int(np.clip(int(seconds / each) + 1, *STEPS))


def check_losses(work: Work, part: str, found: dict[str, Timing]) -> None:
    """Raise ArithmeticError where a contestant that should do the same work has another loss."""
    ours = found["ours"]
    for name, timing in found.items():
        if timing.refused or ours.refused or work.cell in CONTESTANTS[name].differs:
            continue
        # Ten steps at once tell the first of their losses alone.
        for step, (theirs, own) in enumerate(zip(timing.losses, ours.losses, strict=False)):
            # A layer's product with random numbers is near 0 beside its terms.
            scale = abs(own) if part == "step" else layer_scale(work.size)
            most = LOSS_TOLERANCE[work.precision] * scale
            if part == "step" and CONTESTANTS[name].two_biases:
                most += BIAS_SHARE * abs(own - ours.losses[0])
            if not abs(theirs - own) <= most:
                raise ArithmeticError(
                    f"{CONTESTANTS[name].label} finds {theirs:.6g} at step {step} where ours finds "
                    f"{own:.6g} ({part}, {work.cell}, {work.size}); wanted the same work"
                )


def layer_scale(size: Size) -> float:
    """About what a sum of B T H terms of random sign comes to."""
    return float(np.sqrt(size.batch * size.length * size.hidden))
