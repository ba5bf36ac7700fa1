"""Training on a Slurm cluster: groups of points as the jobs of job arrays, by submitit.

A job writes each finished point into a file of its own (whole or not at all), so that jobs on
many machines never write the same one; the process that runs the sweep reads these files into
its table. A job that is preempted is put back into the queue by submitit and goes on with the
points that have no file yet; one that is killed is sent again. The files stay: a sweep that is
resumed finds what its jobs have finished meanwhile, and asks Slurm nothing about them.

submitit hands a job over as a pickle in the run's own folder, which must be on a disk that all
machines share.
"""

import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import run_folder
from experiments.search.config import Config
from experiments.search.points import Group, SweepPoint
from experiments.search.training import Trainer, failure
from experiments.search.worker import prepare_jax

CLUSTER = "slurm"  # as submitit calls it; the tests have its "local"
PATIENCE = 1.0  # seconds between two looks at the folder
JOBS = "jobs.json"  # in the run's folder
LOOK_AT_JOBS = 5.0  # seconds between two questions to Slurm
LOOKS_GONE = 2  # so often in turn a job must be missing: a shared disk shows its files late


def check_installed() -> None:
    """Raise ValueError where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(
            "executor slurm needs the package submitit, which is not installed; wanted it, as "
            'uv pip install -e ".[slurm]"'
        )


class Job:
    """A part of a group, as it runs on a machine of the cluster: what submitit calls there."""

    def __init__(self, points: Sequence[tuple[int, dict[str, Any]]], fixed: Mapping[str, Any]):
        self.points, self.fixed = tuple(points), dict(fixed)

    @property
    def numbers(self) -> list[int]:
        """Of its points."""
        return [number for number, _ in self.points]

    def __call__(self, folder_name: str) -> None:
        """Train the points that have no file yet."""
        folder = Path(folder_name)
        config = run_folder.read_config(folder, Config)
        prepare_jax(config.data)
        left = [SweepPoint(n, options) for n, options in self.points if not is_done(folder, n)]
        print(f"{len(left)} of {len(self.points)} points to train", flush=True)
        trainer = Trainer(config, folder)
        for record in trainer.train(self.fixed, left, lambda tick: None):
            run_folder.write_json(path_of(folder, record["number"]), record)
            print(f"point {record['number']}: {record['status']}", flush=True)

    def checkpoint(self, folder_name: str) -> Any:
        """What goes back into the queue where Slurm takes the machine away: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, folder_name)


def path_of(folder: Path, number: int) -> Path:
    """The file of a finished point."""
    return folder / "points" / f"{number}.json"


def is_done(folder: Path, number: int) -> bool:
    return path_of(folder, number).exists()


def read_record(folder: Path, number: int) -> dict[str, Any]:
    """Of a finished point, as it was before JSON, which has a word for infinity."""
    stored: dict[str, Any] = run_folder.read_json(path_of(folder, number))
    return {name: math.inf if value == "inf" else value for name, value in stored.items()}


def train_on_slurm(
    folder: Path, config: Config, groups: Sequence[Group]
) -> Iterator[dict[str, Any] | None]:
    """Records as the jobs finish points, None where there is nothing new.

    Closing the iterator cancels the jobs.
    """
    (folder / "points").mkdir(exist_ok=True)
    left = {point.number for group in groups for point in group.points}
    for number in sorted(left):  # what jobs of an earlier call have finished
        if is_done(folder, number):
            record = read_record(folder, number)
            if record["status"] == "failed":  # it is tried again
                path_of(folder, number).unlink()
            else:
                left.remove(number)
                yield {"say": "record", "record": record}
    parts = adopt(folder, groups, left)
    free = left - {number for part in parts for number in part.work.numbers}
    parts += send(folder, config, [p for g in groups for p in cut(g, free, config.cluster.jobs)])
    note_jobs(folder, parts)
    looked = time.monotonic()
    try:
        while left:
            for number in sorted(left):
                if is_done(folder, number):
                    left.remove(number)
                    yield {"say": "record", "record": read_record(folder, number)}
            if left and time.monotonic() - looked > LOOK_AT_JOBS:
                looked = time.monotonic()
                for number, why in renew(parts, folder, config, left):
                    left.remove(number)
                    yield {"say": "record", "record": failure(number, why)}
                note_jobs(folder, parts)
            time.sleep(PATIENCE)
            yield None
    finally:
        for part in parts:
            if any(number in left for number in part.work.numbers):
                part.sent.cancel(check=False)


class Part:
    """A job that was sent, and how it fares."""

    def __init__(self, work: Job, sent: Any):
        self.work, self.sent = work, sent
        self.missing = 0  # looks at the queue in turn that did not find it
        self.deaths = 0


def note_jobs(folder: Path, parts: Sequence[Part]) -> None:
    """Write down which jobs there are: they outlive a kill of this process."""
    known = [{"job": part.sent.job_id, "points": part.work.numbers} for part in parts]
    if not (folder / JOBS).exists() or run_folder.read_json(folder / JOBS) != known:
        run_folder.write_json(folder / JOBS, known)


def adopt(folder: Path, groups: Sequence[Group], left: set[int]) -> list[Part]:
    """The jobs of an earlier call that Slurm still has: they are waited for, not sent twice."""
    queue = read_queue() or set()
    stored = run_folder.read_json(folder / JOBS) if (folder / JOBS).exists() else []
    alive = [known for known in stored if known["job"] in queue]
    if not alive:
        return []
    import submitit

    group_of = {point.number: group for group in groups for point in group.points}
    parts = []
    for known in alive:
        numbers = left & set(known["points"])
        if numbers:
            group = group_of[min(numbers)]
            logs = folder / "logs" / known["job"].split("_")[0]
            sent: Any = submitit.SlurmJob(logs, known["job"])
            parts.append(Part(Job(points_of(group, numbers), group.fixed), sent))
    print(f"{len(parts)} jobs of before are in the queue still", flush=True)
    return parts


def points_of(group: Group, numbers: set[int]) -> list[tuple[int, dict[str, Any]]]:
    """Number and options of a group's points that are among `numbers`."""
    return [(p.number, dict(p.options)) for p in group.points if p.number in numbers]


def cut(group: Group, left: set[int], jobs: int) -> list[Job]:
    """The points of a group that are left, as at most `jobs` jobs of about as many."""
    points = points_of(group, left)
    size = max(1, math.ceil(len(points) / jobs))
    return [Job(points[k : k + size], group.fixed) for k in range(0, len(points), size)]


def send(folder: Path, config: Config, jobs: Sequence[Job]) -> list[Part]:
    """Put jobs into the queue, as one array."""
    import submitit

    options = config.cluster
    executor = submitit.AutoExecutor(folder=folder / "logs" / "%j", cluster=CLUSTER)
    executor.update_parameters(
        name="sweep",
        timeout_min=options.minutes,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus,
        **({"mem_gb": options.memory} if options.memory else {}),
        **({"slurm_partition": options.partition} if options.partition else {}),
        slurm_array_parallelism=options.jobs,
    )
    if not jobs:
        return []
    with executor.batch():
        sent = [executor.submit(job, str(folder.resolve())) for job in jobs]
    return [Part(job, handle) for job, handle in zip(jobs, sent, strict=True)]


def renew(
    parts: Sequence[Part], folder: Path, config: Config, left: set[int]
) -> Iterator[tuple[int, str]]:
    """Send jobs again that ended before their points were done.

    Yields:
      (point, why) of those that are given up, since their job died too often.
    """
    queue = read_queue()
    for part in parts:
        waiting = [n for n in part.work.numbers if n in left and not is_done(folder, n)]
        ended = part.sent.done() if queue is None else part.sent.job_id not in queue
        part.missing = part.missing + 1 if waiting and ended else 0
        if part.missing < LOOKS_GONE:
            continue
        part.deaths, part.missing = part.deaths + 1, 0
        gone = f"job {part.sent.job_id} ended before its time, see {part.sent.paths.stderr}"
        if part.deaths > config.retries:
            yield from ((number, gone) for number in waiting)
            continue
        print(f"{gone}; {len(waiting)} points to do: sent again", file=sys.stderr, flush=True)
        part.sent = send(folder, config, [part.work])[0].sent


def read_queue() -> set[str] | None:
    """Ids of the jobs that Slurm has, waiting or running; None where it cannot be asked.

    The queue and not the accounts, which not every cluster keeps.
    """
    if CLUSTER != "slurm":
        return None
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", "--me"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return set(asked.stdout.split())
