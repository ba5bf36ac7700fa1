"""Which devices a run trains on, and which processes have them: from flags, or from Slurm."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lm.config import option, validate

SLURM = (  # all that a process needs to know, and has where srun started it
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_PROCID",
)
PORTS = 61440, 4096  # first and number of those that a Slurm step's coordinator has one of
ALL = -1  # devices


@dataclass(frozen=True)
class DevicesConfig:
    """Several devices for one model."""

    mesh: str = option(
        "",
        "devices that share the rows of each batch: data=4, or data=all for those that there are; "
        "empty: one, or the cores of a CPU where the batch is large beside the model",
    )
    coordinator: str = option(
        "",
        "several processes: HOST:PORT of process 0, a free port there, the same in all of them; "
        "found where srun starts them",
    )
    processes: int = option(
        0, "several processes: how many; 0: one, or what srun says", least=0, most=10**6
    )
    process: int = option(
        -1, "several processes: which of them this is, from 0; -1: what srun says", least=-1
    )

    def __post_init__(self) -> None:
        validate(self)
        _ = self.devices
        if self.coordinator:
            port = re.fullmatch(r".+:(\d{1,5})", self.coordinator)
            if not port or not 0 < int(port[1]) < 2**16:
                raise ValueError(
                    f"coordinator is {self.coordinator}; wanted HOST:PORT, as node1:9900"
                )
        if self.processes and self.process >= self.processes:
            raise ValueError(
                f"process is {self.process} of {self.processes}; wanted 0 to {self.processes - 1}"
            )

    @property
    def devices(self) -> int:
        """How many devices share a batch; ALL for those that there are.

        Raises:
          ValueError: mesh says something else.
        """
        if not self.mesh:
            return 1
        found = re.fullmatch(r"data=(all|[1-9]\d{0,6})", self.mesh)
        if not found:
            raise ValueError(f"mesh is {self.mesh}; wanted data=N, as --mesh=data=4, or data=all")
        return ALL if found[1] == "all" else int(found[1])


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train one model."""

    coordinator: str  # HOST:PORT
    count: int
    index: int
    gpus: tuple[int, ...] | None = None  # its own among those that it sees; None: all


def find_place(config: DevicesConfig, environ: Mapping[str, str]) -> Place | None:
    """The place that flags or Slurm give this process; None where it trains alone.

    What flags say goes before what Slurm says.

    Raises:
      ValueError: flags say a part of it, and Slurm not the rest.
    """
    if not config.mesh:
        if (config.coordinator, config.processes, config.process) != ("", 0, -1):
            raise ValueError(
                "coordinator, processes or process is given without a mesh, whose devices they "
                "have; wanted --mesh=data=N beside it"
            )
        return None
    slurm = read_slurm(environ)
    coordinator = config.coordinator or (slurm.coordinator if slurm else "")
    count = config.processes or (slurm.count if slurm else 0)
    index = slurm.index if config.process < 0 and slurm else config.process
    if count == 1 or (count == 0 and index < 0 and not coordinator):
        return None
    lacking = [
        f"--{name}"
        for name, there in (
            ("coordinator=HOST:PORT", coordinator),
            ("processes=N", count),
            (f"process=K (0 to {count - 1})" if count else "process=K", index >= 0),
        )
        if not there
    ]
    if lacking:
        raise ValueError(f"one of several processes, but which? wanted {', '.join(lacking)} too")
    if index >= count:
        raise ValueError(f"process is {index} of {count}; wanted 0 to {count - 1}")
    return Place(coordinator, count, index, slurm.gpus if slurm else None)


def read_slurm(environ: Mapping[str, str]) -> Place | None:
    """The place of a task that srun started; None for any other process.

    A batch script and a shell of salloc have some of Slurm's variables, SLURM_NTASKS among them,
    and are one process nevertheless: those of a step decide.
    """
    if not all(name in environ for name in SLURM):
        return None
    job, step, count, nodes, index = (environ[name] for name in SLURM)
    if not (step.isdigit() and job.isdigit() and int(count) > 1):
        return None  # a batch script's or a shell's own step, or a single task
    first, ports = PORTS
    port = first + (int(job) + 61 * int(step)) % ports
    return Place(f"{first_host(nodes)}:{port}", int(count), int(index), own_gpus(environ))


def why_alone(config: DevicesConfig, environ: Mapping[str, str]) -> str:
    """A line where Slurm has given several tasks, and none of its variables says which this is."""
    tasks = environ.get("SLURM_NTASKS", "1")
    if not config.mesh or tasks == "1" or find_place(config, environ) or config.processes == 1:
        return ""
    missing = [name for name in SLURM if name not in environ]
    reason = f"{', '.join(missing)} missing" if missing else "its step has one task"
    return (
        f"SLURM_NTASKS is {tasks}, but this process was not started by srun ({reason}): it trains "
        "alone, on the devices that it sees"
    )


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: node[003-007,12],other -> node003."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


def own_gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which of the GPUs that it sees a task of Slurm takes; None: all.

    Tasks that see the same GPUs share them out; tasks that Slurm has given some each keep those.
    """
    tasks = int((re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "")) or ["1"])[0])
    local = int(environ.get("SLURM_LOCALID", "0"))
    seen = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if tasks == 1 or "SLURM_GPUS_PER_TASK" in environ or (seen and len(seen) < tasks):
        return None
    each = max(1, len(seen) // tasks)
    return tuple(range(local * each, (local + 1) * each))
