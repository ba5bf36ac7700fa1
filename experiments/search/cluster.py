"""Training on a Slurm cluster: groups of points, cut into the jobs of one job array, by submitit.

A job writes each finished point into a file of its own (whole or not at all), so that jobs on
many machines never write the same one; the process that runs the sweep reads these files into
its table. A job that is preempted is put back into the queue by submitit and goes on with the
points that have no file yet; one that is killed is sent again. The files stay: a sweep that is
resumed, by whatever executor, finds what its jobs have finished meanwhile, and asks Slurm nothing
about them. The jobs that are still in the queue are waited for, or cancelled where this machine
is to train in their place.

submitit hands a job over as a pickle in the run's own folder, which must be on a disk that all
machines share.
"""

import contextlib
import importlib.util
import io
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
ENDING = 120.0  # seconds that cancelled jobs have to end: Slurm gives them 30 if not told otherwise


class SlurmError(ValueError):
    """Slurm refuses a job, or does not answer."""


def check_installed() -> None:
    """Raise ValueError where submitit is not installed, or Slurm's commands are not."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(
            "executor slurm needs the package submitit, which is not installed; wanted it, as "
            'uv pip install -e ".[slurm]"'
        )
    missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(name)]
    if missing and CLUSTER == "slurm":
        raise ValueError(
            f"executor slurm needs {', '.join(missing)} of Slurm, not found in PATH; wanted to be "
            "called on a machine of the cluster, or --executor=local"
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


def finished_before(folder: Path, left: set[int], *, wait: bool) -> Iterator[dict[str, Any]]:
    """Records of the points that jobs of an earlier call have finished; failed ones are left.

    Args:
      left: numbers of the points that are to be trained, as far as the table knows.
      wait: whether jobs that are still in the queue are to go on; else they are cancelled first.
    """
    if not wait:
        withdraw(folder, left)
    found = 0
    for number in sorted(left):
        if not is_done(folder, number):
            continue
        record = read_record(folder, number)
        if record["status"] == "failed":  # it is tried again
            path_of(folder, number).unlink()
            continue
        found += 1
        yield record
    if found:
        print(f"points that jobs of before have finished: {found}", flush=True)


def train_on_slurm(
    folder: Path, config: Config, groups: Sequence[Group]
) -> Iterator[dict[str, Any] | None]:
    """Send the points, but those that jobs of an earlier call have; returns what `follow` yields.

    Raises:
      ValueError: Slurm refuses the jobs. Those of an earlier call are left alone.
    """
    (folder / "points").mkdir(exist_ok=True)
    left = {point.number for group in groups for point in group.points}
    try:
        parts = adopt(folder, groups, left)
        free = left - {number for part in parts for number in part.work.numbers}
        jobs = [job for group in groups for job in cut(group, free, config.cluster.jobs)]
        parts += send(folder, config, jobs)
    except SlurmError as error:
        raise ValueError(
            f"{error}; when that is mended (--partition, --minutes, --cpus, --gpus, --memory may "
            f"change): ./launch.sh sweep --run={folder} --resume"
        ) from None
    note_jobs(folder, parts)
    return follow(folder, config, parts, left)


def follow(
    folder: Path, config: Config, parts: Sequence["Part"], left: set[int]
) -> Iterator[dict[str, Any] | None]:
    """Records as the jobs finish points, None where there is nothing new.

    Closing the iterator cancels the jobs.
    """
    looked, told = time.monotonic(), set[str]()
    try:
        while left:
            for number in sorted(left):
                if is_done(folder, number):
                    left.remove(number)
                    yield {"say": "record", "record": read_record(folder, number)}
            if left and time.monotonic() - looked > LOOK_AT_JOBS:
                looked = time.monotonic()
                try:
                    for number, why in renew(parts, folder, config, left):
                        left.remove(number)
                        yield {"say": "record", "record": failure(number, why)}
                except SlurmError as error:  # it may pass, and what jobs there are train on
                    if str(error) not in told:
                        tqdm.write(f"{error}; tried again", file=sys.stderr)
                    told.add(str(error))
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


def noted_jobs(folder: Path, left: set[int]) -> list[dict[str, Any]]:
    """{"job": id, "points": numbers} of the jobs of an earlier call, if any of these is left."""
    stored = run_folder.read_json(folder / JOBS) if (folder / JOBS).exists() else []
    return [known for known in stored if left & set(known["points"])]


def adopt(folder: Path, groups: Sequence[Group], left: set[int]) -> list[Part]:
    """The jobs of an earlier call that Slurm still has: they are waited for, not sent twice.

    Raises:
      SlurmError: it does not say which.
    """
    noted = noted_jobs(folder, left)
    queue = (read_queue() or set()) if noted else set()
    alive = [known for known in noted if known["job"] in queue]
    if not alive:
        return []
    import submitit

    group_of = {point.number: group for group in groups for point in group.points}
    parts = []
    for known in alive:
        numbers = left & set(known["points"])
        group = group_of[min(numbers)]
        logs = folder / "logs" / known["job"].split("_")[0]
        sent: Any = submitit.SlurmJob(logs, known["job"])
        parts.append(Part(Job(points_of(group, numbers), group.fixed), sent))
    print(f"jobs of before in the queue still: {len(parts)}; they are waited for", flush=True)
    return parts


def withdraw(folder: Path, left: set[int]) -> None:
    """Cancel the jobs of an earlier call and wait until they have ended."""
    noted = {known["job"] for known in noted_jobs(folder, left)}
    if not noted:
        return
    try:
        alive = noted & (read_queue() or set())
        if alive:
            print(f"jobs of before in the queue still: {len(alive)}; cancelled", flush=True)
            ask_slurm("scancel", *sorted(alive))
        until = time.monotonic() + ENDING
        while alive and time.monotonic() < until:
            time.sleep(PATIENCE)
            alive &= read_queue() or set()
        if alive:
            raise SlurmError(f"jobs {', '.join(sorted(alive))} do not end")
    except SlurmError as error:
        print(
            f"{error}; the points of jobs that run on are trained twice",
            file=sys.stderr,
            flush=True,
        )


def points_of(group: Group, numbers: set[int]) -> list[tuple[int, dict[str, Any]]]:
    """Number and options of a group's points that are among `numbers`."""
    return [(p.number, dict(p.options)) for p in group.points if p.number in numbers]


def cut(group: Group, left: set[int], jobs: int) -> list[Job]:
    """The points of a group that are left, as at most `jobs` jobs of about as many."""
    points = points_of(group, left)
    size = max(1, math.ceil(len(points) / jobs))
    return [Job(points[k : k + size], group.fixed) for k in range(0, len(points), size)]


def send(folder: Path, config: Config, jobs: Sequence[Job]) -> list[Part]:
    """Put jobs into the queue, as one array of which so many run at once as --jobs says.

    Raises:
      SlurmError: it refuses them, all of them.
    """
    if not jobs:
        return []
    import submitit

    options = config.cluster
    try:
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
        # submitit prints what sbatch says, and raises it too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            sent = [executor.submit(job, str(folder.resolve())) for job in jobs]
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = said_by(str(error)) or said_by(str(error.__cause__))
        raise SlurmError(f"Slurm takes none of {len(jobs)} jobs ({reason})") from error
    return [Part(job, handle) for job, handle in zip(jobs, sent, strict=True)]


def renew(
    parts: Sequence[Part], folder: Path, config: Config, left: set[int]
) -> Iterator[tuple[int, str]]:
    """Send jobs again that ended before their points were done.

    Yields:
      (point, why) of those that are given up, since their job died too often.

    Raises:
      SlurmError: it does not answer, or refuses a job; the next call tries it again.
    """
    queue = read_queue()
    for part in parts:
        waiting = [n for n in part.work.numbers if n in left and not is_done(folder, n)]
        ended = part.sent.done() if queue is None else part.sent.job_id not in queue
        part.missing = part.missing + 1 if waiting and ended else 0
        if part.missing < LOOKS_GONE:
            continue
        gone = f"job {part.sent.job_id} ended before its time, see {part.sent.paths.stderr}"
        if part.deaths >= config.retries:
            yield from ((number, gone) for number in waiting)
            continue
        part.sent = send(folder, config, [part.work])[0].sent
        part.deaths, part.missing = part.deaths + 1, 0
        tqdm.write(f"{gone}; points to do: {len(waiting)}; sent again", file=sys.stderr)


def read_queue() -> set[str] | None:
    """Ids of the jobs that Slurm has, waiting or running; None where it is not Slurm that has them.

    The queue and not the accounts, which not every cluster keeps.

    Raises:
      SlurmError: it does not answer.
    """
    if CLUSTER != "slurm":
        return None
    return set(ask_slurm("squeue", "--noheader", "--array", "--format=%i", "--me").split())


def ask_slurm(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
      SlurmError: it is not there, fails, or takes a minute.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        reason = said_by(getattr(error, "stderr", "") or str(error))
        raise SlurmError(f"{command[0]} of Slurm does not answer ({reason})") from error
    return done.stdout


def said_by(text: str) -> str:
    """In one line, what a command of Slurm said on its standard error."""
    lines = [line.split("error: ")[-1].strip() for line in text.splitlines()]
    return "; ".join(filter(None, lines))
