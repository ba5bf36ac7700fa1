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
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import run_folder
from experiments.search.config import Config
from experiments.search.points import Group, SweepPoint
from experiments.search.training import Trainer, failure

CLUSTER = "slurm"  # as submitit calls it; the tests have its "local"
PATIENCE = 1.0  # seconds between two looks at the folder
LOOK_AT_JOBS = 10.0  # seconds between two questions to Slurm
NO_SIGN = 60.0  # seconds that a job may be gone before its files are taken as all there are


def check_installed() -> None:
    """Raise ValueError where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(
            "executor slurm needs the package submitit, which is not installed; wanted it, as "
            'uv pip install -e ".[slurm]"'
        )


class Job:
    """A part of a group, as it runs on a machine of the cluster: what submitit calls."""

    def __init__(self, folder: str, points: Sequence[tuple[int, dict[str, Any]]], fixed: Any):
        self.folder, self.points, self.fixed = folder, tuple(points), dict(fixed)

    def __call__(self) -> int:
        """Train the points that have no file yet. Returns how many."""
        from experiments.search.worker import prepare_jax

        prepare_jax()
        folder = Path(self.folder)
        left = [SweepPoint(n, options) for n, options in self.points if not is_done(folder, n)]
        print(f"{len(left)} of {len(self.points)} points to train", flush=True)
        trainer = Trainer(run_folder.read_config(folder, Config))
        for record in trainer.train(self.fixed, left, lambda tick: None):
            run_folder.write_json(path_of(folder, record["number"]), record)
            print(f"point {record['number']}: {record['status']}", flush=True)
        return len(left)

    def checkpoint(self) -> Any:
        """What is put back into the queue when Slurm takes the machine away: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def path_of(folder: Path, number: int) -> Path:
    """The file of a finished point."""
    return folder / "points" / f"{number}.json"


def is_done(folder: Path, number: int) -> bool:
    return path_of(folder, number).exists()


def train_on_slurm(
    folder: Path, config: Config, groups: Sequence[Group]
) -> Iterator[dict[str, Any] | None]:
    """Records as the jobs finish points, None where there is nothing new.

    Closing the iterator cancels the jobs.
    """
    (folder / "points").mkdir(exist_ok=True)
    left = {point.number: group for group in groups for point in group.points}
    # What jobs of an earlier call have finished; a failure is tried again.
    for number in list(left):
        if is_done(folder, number):
            record = run_folder.read_json(path_of(folder, number))
            if record["status"] == "failed":
                path_of(folder, number).unlink()
            else:
                del left[number]
                yield {"say": "record", "record": record}
    parts = [part for group in groups for part in cut(group, left, config.cluster.jobs)]
    watched = [
        Part(part, job) for part, job in zip(parts, submit(folder, config, parts), strict=True)
    ]
    looked = time.monotonic()
    try:
        while left:
            for number in [n for n in left if is_done(folder, n)]:
                del left[number]
                record = run_folder.read_json(path_of(folder, number))
                yield {"say": "record", "record": finite(record)}
            if left and time.monotonic() - looked > LOOK_AT_JOBS:
                looked = time.monotonic()
                for part in watched:
                    yield from renew(part, folder, config, left)
            time.sleep(PATIENCE)
            yield None
    finally:
        for part in watched:
            if not part.job.done():
                part.job.cancel(check=False)


class Part:
    """A job that was sent, and how often it died."""

    def __init__(self, job: Job, sent: Any):
        self.work, self.job, self.deaths = job, sent, 0


def renew(
    part: Part, folder: Path, config: Config, left: dict[int, Group]
) -> Iterator[dict[str, Any]]:
    """Send a job again that ended before its points were done; give up after some times."""
    waiting = [n for n, _ in part.work.points if n in left and not is_done(folder, n)]
    if not waiting or not part.job.done(force_check=True):
        return
    if not all(n in left and not is_done(folder, n) for n in waiting):
        return
    part.deaths += 1
    why = reason(part.job)
    if part.deaths > config.retries:
        for number in waiting:
            del left[number]
            record = failure(number, f"its job {part.job.job_id} ended: {why}")
            run_folder.write_json(path_of(folder, number), record)
            yield {"say": "record", "record": record}
        return
    print(
        f"job {part.job.job_id} ended ({why}) with {len(waiting)} points to do; sent again",
        file=sys.stderr,
    )
    (part.job,) = submit(folder, config, [part.work])


def reason(job: Any) -> str:
    """Why a job is gone, in a few words."""
    return f"Slurm says {job.state}"


def cut(group: Group, left: dict[int, Group], jobs: int) -> list[Job]:
    """The points of a group that are left as at most `jobs` jobs, each of about as many."""
    return [Job("", part, group.fixed) for part in deal(group, left, jobs)]


def deal(group: Group, left: dict[int, Group], jobs: int) -> list[list[tuple[int, dict[str, Any]]]]:
    points = [(p.number, dict(p.options)) for p in group.points if p.number in left]
    size = max(1, math.ceil(len(points) / jobs))
    return [points[k : k + size] for k in range(0, len(points), size)]


def submit(folder: Path, config: Config, jobs: Sequence[Job]) -> list[Any]:
    """Send jobs as one array. Returns submitit's jobs."""
    import submitit

    options = config.cluster
    executor = submitit.AutoExecutor(folder=folder / "logs" / "%j", cluster=CLUSTER)
    executor.update_parameters(
        name="sweep",
        timeout_min=options.minutes,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus,
        **({"mem_gb": options.memory} if options.memory else {}),
        slurm_array_parallelism=options.jobs,
        **({"slurm_partition": options.partition} if options.partition else {}),
    )
    for job in jobs:
        job.folder = str(folder.resolve())
    with executor.batch():
        sent = [executor.submit(job) for job in jobs]
    return sent


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it was before JSON: inf is written as a word."""
    return {k: math.inf if v == "inf" else v for k, v in record.items()}
