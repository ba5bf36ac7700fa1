"""Training on this machine: worker processes, each on cores of its own, that points are handed to.

On a CPU a worker has one core: two runs on a core each are done sooner than one after the other
on both, whose steps are too small to be cut in two, and nothing that one does can stop the other.
A worker that dies is replaced, and its points are given out again. It is what it was at that has
killed it, not what it was given to do next.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.search.config import Config
from experiments.search.points import Group, SweepPoint
from experiments.search.training import failure

ROOT = Path(__file__).parents[2]
Job = tuple[Group, list[SweepPoint]]  # points to be trained at once
PATIENCE = 0.5  # seconds between two looks at what else is to be done


class HandOut:
    """Which points a worker gets next."""

    def __init__(self, groups: Sequence[Group], retries: int = 0):
        """
        Args:
          retries: how often a point is given out anew whose worker has died.
        """
        self._left = [(group, list(group.points)) for group in groups]
        self._at: dict[int, int] = {}  # worker -> the group it has compiled last
        self._retries = retries
        self._deaths: dict[int, int] = {}  # point -> workers that died at it

    def __len__(self) -> int:
        """Points that are left."""
        return sum(len(points) for _, points in self._left)

    def take(self, worker: int, width: int) -> tuple[Group, list[SweepPoint]] | None:
        """Points of the worker's last group, else of one that nobody is at, else of the longest."""
        at = self._at.get(worker)
        open_groups = [k for k, (_, points) in enumerate(self._left) if points]
        if not open_groups:
            return None
        if at not in open_groups:
            fresh = [k for k in open_groups if k not in self._at.values()]
            at = fresh[0] if fresh else max(open_groups, key=lambda k: len(self._left[k][1]))
        self._at[worker] = at
        group, points = self._left[at]
        taken = points[:width]
        del points[:width]
        return group, taken

    def take_back(self, jobs: Iterable[Job]) -> list[int]:
        """What a worker had that has died, first what it was at.

        These points are given out one by one from now on: the one that kills fails alone.

        Returns:
          Numbers of those that are given up.
        """
        given_up = []
        for place, (group, points) in enumerate(jobs):
            if place > 0:
                self._left.append((group, points))
                continue
            for point in points:
                self._deaths[point.number] = self._deaths.get(point.number, 0) + 1
                if self._deaths[point.number] > self._retries:
                    given_up.append(point.number)
                else:
                    self._left.append((group, [point]))
        return given_up


class Worker:
    """A worker process; what it says comes into a queue as (worker, message)."""

    def __init__(self, number: int, folder: Path, cores: Sequence[int], events: Any):
        self.number = number
        self.jobs: deque[Job] | None = None  # not finished, first what it is at; None: too early
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"worker-{number}.log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "experiments.search.worker"),
                    *(str(folder.resolve()), json.dumps(list(cores))),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path.cwd(),  # the paths in flags are relative to it
                env=worker_environment(),
                start_new_session=True,  # Ctrl-C is for the process that runs the sweep
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: Any) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                events.put((self, json.loads(line)))
            except json.JSONDecodeError:  # torn by a kill
                break
        self.process.wait()
        events.put((self, {"say": "gone"}))

    def give(self, group: Group, points: Sequence[SweepPoint]) -> None:
        """Let it train these."""
        assert self.process.stdin is not None
        assert self.jobs is not None
        self.jobs.append((group, list(points)))
        job = {"fixed": group.fixed, "points": [[p.number, p.options] for p in points]}
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it is gone, and is about to say so
            return

    def finish(self, number: int) -> None:
        """A point of what it is at is finished."""
        assert self.jobs
        group, points = self.jobs[0]
        self.jobs[0] = group, [point for point in points if point.number != number]

    def dismiss(self) -> None:
        """There is no more to do."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()


def train_locally(
    folder: Path, config: Config, groups: Sequence[Group]
) -> Iterator[dict[str, Any] | None]:
    """What the workers say until all points are trained: ticks and records, None where nothing.

    Closing the iterator ends the workers.
    """
    handing = HandOut(groups, config.retries)
    events: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
    shares = share_cores(config.workers, sum(len(group.points) for group in groups))
    workers = {number: Worker(number, folder, cores, events) for number, cores in enumerate(shares)}
    try:
        while workers:
            try:
                worker, message = events.get(timeout=PATIENCE)
            except queue.Empty:
                yield None
                continue
            if message["say"] == "ready":
                supply(worker, handing, message["width"], len(workers))
            if message["say"] == "record":
                worker.finish(message["record"]["number"])
            if message["say"] != "gone":
                yield message
                continue
            del workers[worker.number]
            code = worker.process.returncode
            for number in handing.take_back(worker.jobs or ()):
                yield {"say": "record", "record": failure(number, describe_death(code))}
            if worker.jobs is None:
                raise ValueError(
                    f"worker {worker.number} ended with status {code} before it began; see "
                    f"{folder / 'logs' / f'worker-{worker.number}.log'}"
                )
            if handing:
                number = worker.number
                yield {"say": "note", "text": f"worker {number} {how_ended(code)}; it is replaced"}
                cores = shares[worker.number]
                workers[worker.number] = Worker(worker.number, folder, cores, events)
    finally:
        for worker in workers.values():
            worker.kill()


def supply(worker: Worker, handing: HandOut, width: int, workers: int) -> None:
    """Work for one that has asked for it; one job ahead, so that it waits for nothing.

    Not so the last points: another worker may be free for them sooner.
    """
    if worker.jobs is None:
        worker.jobs = deque()
    else:
        worker.jobs.popleft()
    while len(worker.jobs) < (2 if len(handing) > workers * width else 1):
        given = handing.take(worker.number, width)
        if given is None:
            break
        worker.give(*given)
    if not worker.jobs:
        worker.dismiss()


def share_cores(workers: int, points: int) -> list[list[int]]:
    """The cores of each worker, dealt out in turn; empty lists: all of them.

    Args:
      workers: as asked for; 0: as many as there are cores, or one where there is a GPU.
      points: there are to train.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    wanted = workers or (1 if has_accelerator() else len(cores) or os.cpu_count() or 1)
    wanted = max(1, min(wanted, points))
    if has_accelerator() or wanted > len(cores):
        return [[] for _ in range(wanted)]
    return [cores[k::wanted] for k in range(wanted)]


def has_accelerator() -> bool:
    """Whether JAX would train on something else than the CPU; without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/accel0", "/dev/kfd"))


def worker_environment() -> dict[str, str]:
    """With this checkout to import from, and without a cache of programs where there is none."""
    import jax

    found = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, found))}
    if jax.config.values["jax_compilation_cache_dir"] is None:  # --compilation_cache=False
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    return environment


def describe_death(code: int | None) -> str:
    """Why a point's worker is gone, as far as its exit status says."""
    return f"its worker {how_ended(code)}"


def how_ended(code: int | None) -> str:
    """What an exit status says of a process."""
    if code is not None and code < 0:
        return f"was ended by signal {-code}" + (" (is memory short?)" if code == -9 else "")
    return f"ended with status {code}"
