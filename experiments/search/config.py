"""The options of `sweep`: what is swept, who trains it, and what all points have in common."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.fit.config import Config as Train
from experiments.fit.config import with_options
from experiments.fit.idle import idle_options
from experiments.flow.sources import refuse_near_name
from experiments.recipes import RECIPES, load_recipe
from experiments.search.space import Axis, each_field, parse_axes, read_text
from lm.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RegularizeConfig,
    is_traced,
    option,
    validate,
)
from lm.task_lengths import LEAST_STEPS

# Options of a task run: one layer, a readout, Adam. The others do nothing there.
TASK_OPTIONS = {
    *("cell", "hidden_size", "chrono", "forget_bias", "learning_rate", "clip"),
    *("steps", "seed", "length", "batch_size", "corpus"),
}
TASK_TRACED = {"seed", "learning_rate", "clip", "forget_bias"}
# Options of a run of train that are not of its training, or that all points must share.
SHARED = (
    *("corpus", "data_dir", "cache_dir", "recipe", "sweep", "samples", "draw_seed"),
    *("executor", "workers", "retries", "run", "resume", "steps_per_dispatch"),
)


@dataclass(frozen=True)
class ClusterConfig:
    """What a job of a Slurm cluster asks for (--executor=slurm)."""

    partition: str = option("", "Slurm partition; empty: the cluster's default")
    minutes: int = option(60, "time limit of a job", least=1)
    cpus: int = option(1, "cores of a job", least=1)
    gpus: int = option(0, "GPUs of a job", least=0)
    memory: int = option(0, "memory of a job, GB; 0: the cluster's default", least=0)
    jobs: int = option(
        16, "jobs that a group of points is cut into, and that run at once, at most", least=1
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Config:
    """Options of sweep."""

    preset: ClassVar[str] = "recipe"
    omit: ClassVar[tuple[str, ...]] = ("given",)

    sweep: str = option(
        "",
        'options and their values, as "learning_rate=log(0.1,30,8) forget_bias=0,1,3 seed=0:8", '
        "or @FILE that says so: options of train (on a task, which is trained with Adam: "
        f"{', '.join(sorted(TASK_OPTIONS - {'corpus'}))}), and lists of values, whole numbers "
        "FIRST:STOP, lin(LOW,HIGH,COUNT), log(LOW,HIGH,COUNT)",
    )
    samples: int = option(
        0,
        "random search: how many different settings to draw from the values, or from "
        "lin(LOW,HIGH) and log(LOW,HIGH); each is trained with every seed of the sweep. 0: the "
        "whole grid",
        least=0,
    )
    draw_seed: int = option(0, "of the random search's draws", least=0)
    executor: str = option(
        "local",
        "who trains: local (worker processes of this machine) or slurm (jobs of a cluster)",
        choices=("local", "slurm"),
    )
    workers: int = option(
        0, "local: worker processes; 0: one for each core, or one for all GPUs", least=0, most=1024
    )
    retries: int = option(
        2, "how often points are trained anew whose worker or job has died", least=0
    )
    recipe: str = option("", "a recipe of train to start from", choices=("", *RECIPES))
    epochs: float = option(3.0, "passes through the training text", above=0)
    steps: int = option(0, "training steps; 0: as many as epochs makes, or 1000 on a task", least=0)
    seed: int = option(0, "where it is not swept", least=0, most=2**31 - 1)
    evaluate_every: int = option(0, "steps between evaluations; 0: each epoch", least=0)
    steps_per_dispatch: int = option(50, "training steps in one compiled call", least=1)
    remat: bool = option(False, "as in train")
    run: str = option("", "folder of the run; empty: runs/sweep-<date>-<time>")
    resume: bool = option(
        False,
        "go on with the sweep in --run: what is not finished, or failed; runs that were under way "
        "from where they were kept (each minute) on a text, from their start on a task",
    )
    cluster: ClusterConfig = ClusterConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    optim: OptimConfig = OptimConfig(schedule="cosine")
    given: tuple[str, ...] = option((), "names of the options that were typed")

    def __post_init__(self) -> None:
        validate(self)
        if self.resume and not self.run:
            raise ValueError("resume needs --run=FOLDER, the sweep to go on with")

    @classmethod
    def of_preset(cls, name: str) -> "Config":
        """The options of a recipe, before any flag.

        Raises:
          ValueError: the recipe trains on from a run, and points start from random weights.
        """
        recipe = load_recipe(name)
        if hasattr(recipe, "NEEDS_START"):
            raise ValueError(
                f"recipe {name} trains on from a run of {recipe.NEEDS_START}, and a sweep starts "
                "from random weights; wanted another recipe, or train with --start=RUN"
            )
        return with_options(cls(recipe=name), recipe.OPTIONS)

    @property
    def on_task(self) -> bool:
        """Whether a task is trained on and not a text."""
        return self.data.corpus in LEAST_STEPS

    @property
    def score(self) -> str:
        """The column of the table that is to be small."""
        return "loss" if self.on_task else "valid"

    def may_be_traced(self, name: str, value: Any) -> bool:
        """Whether points of one program may differ in this option."""
        if self.on_task:
            return name in TASK_TRACED
        # The order of sentences and random lengths are the seed's, and batches are shared.
        if name == "seed" and (self.data.batching != "stream" or self.data.random_length):
            return False
        return is_traced(name, value, self.model.init)

    def axes(self) -> tuple[Axis, ...]:
        """What is swept.

        Raises:
          ValueError: a typo; an option that is typed too, or does nothing on a task.
        """
        excluded = {*SHARED, *cluster_names(), *train_names(), "run", "resume"} - swept_names(self)
        swept = parse_axes(read_text(self.sweep), self, excluded)
        for axis in swept:
            if axis.name in self.given:
                raise ValueError(
                    f"{axis.name} is swept, and typed as --{axis.name} too; wanted one of the "
                    "two: leave the flag out"
                )
        if self.on_task:
            for name in (*(axis.name for axis in swept), *self.given):
                if name in train_names() and name not in TASK_OPTIONS:
                    raise ValueError(
                        f"{name} does nothing with corpus {self.data.corpus}, a task, which is "
                        f"trained with Adam; wanted one of: {', '.join(sorted(TASK_OPTIONS))}"
                    )
        else:
            refuse_near_name(self.data.corpus)
        return swept

    def check_point(self) -> None:
        """Refuse, with a ValueError, a point whose options do not go together."""
        if self.on_task:
            least = LEAST_STEPS[self.data.corpus]
            if self.data.length < least:
                raise ValueError(
                    f"length is {self.data.length}; {self.data.corpus} wants at least {least}"
                )
        as_train(self)

    def idle(self, swept: tuple[str, ...]) -> dict[str, str]:
        """Options of a point, typed or swept, that do nothing -> what would make them work."""
        return dict(idle_options(as_train(self, (*self.given, *swept))))


def as_train(config: Config, given: tuple[str, ...] = ()) -> Train:
    """The run of train that a point is.

    Raises:
      ValueError: train refuses it.
    """
    known = {field.name for field in dataclasses.fields(Train)} - {"run", "resume", "given"}
    shared = {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in known
    }
    return Train(**shared, given=tuple(name for name in given if name in train_names()))


def train_names() -> set[str]:
    """Every option of train."""
    names: set[str] = set()
    for field in dataclasses.fields(Train):
        inner = field.default
        names |= (
            {f.name for f in dataclasses.fields(inner)}
            if dataclasses.is_dataclass(inner)
            else {field.name}
        )
    return names - {"run", "resume", "given"}


def swept_names(config: Config) -> set[str]:
    """Options that one value can be given for, but for those that all points share."""
    return {name for name, _ in each_field(config)} - {*SHARED, *cluster_names()}


def cluster_names() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(ClusterConfig))
