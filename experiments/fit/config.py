"""The options of `train`, and how a recipe fills them in."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.fit.devices import DevicesConfig
from experiments.recipes import RECIPES, load_recipe
from lm.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RegularizeConfig,
    option,
    validate,
)


@dataclass(frozen=True)
class Config:
    """Options of train."""

    preset: ClassVar[str] = "recipe"  # names the options that the others start from
    omit: ClassVar[tuple[str, ...]] = ("given",)  # no flag

    recipe: str = option(
        "",
        "a published model by name: its options in place of the defaults below; any of them may "
        "be given beside it",
        choices=("", *RECIPES),
    )
    list_recipes: bool = option(False, "list the recipes with their published results, and stop")
    epochs: float = option(3.0, "passes through the training text", above=0)
    steps: int = option(0, "training steps; 0: as many as epochs makes", least=0)
    seed: int = option(0, "of the parameters, masks and order", least=0, most=2**31 - 1)
    seeds: int = option(
        1, "runs one after another, seeded seed upward, with mean and standard deviation", least=1
    )
    run: str = option("", "folder of the run; empty: runs/train-<date>-<time>")
    resume: bool = option(False, "go on with the run in --run, with the options it was made with")
    start: str = option("", "a trained run whose parameters this one starts from; empty: none")
    steps_per_dispatch: int = option(50, "training steps in one compiled call", least=1)
    remat: bool = option(
        False,
        "keep what the backward pass needs of about sqrt(length) steps at a time and compute the "
        "rest again: memory for very long rows, at the price of another forward pass",
    )
    evaluate_every: int = option(0, "steps between evaluations; 0: each epoch", least=0)
    checkpoint_every: int = option(500, "steps between checkpoints", least=1)
    log_gradient_flow: bool = option(
        False,
        "log and draw how far back the gradient reaches, through training; with "
        "batching=sentences or random_length of one loss on validation text only, since positions "
        "in padded rows have nothing in common",
    )
    devices: DevicesConfig = DevicesConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    optim: OptimConfig = OptimConfig(schedule="cosine")
    given: tuple[str, ...] = option((), "names of the options that were typed")

    def __post_init__(self) -> None:
        validate(self)
        if self.seed + self.seeds > 2**31:
            raise ValueError(f"seed is {self.seed} with {self.seeds} seeds; wanted all below 2^31")
        if self.resume and not self.run:
            raise ValueError("resume needs --run=FOLDER, the run to go on with")
        if self.remat and self.regularize.slowness_penalty:
            raise ValueError(
                f"slowness_penalty is {self.regularize.slowness_penalty} with remat, whose chunks "
                "do not see each other's outputs; wanted one of the two"
            )
        if self.regularize.dropout_hidden and self.model.layers == 1:
            raise ValueError(
                f"dropout_hidden is {self.regularize.dropout_hidden} with one layer, between which "
                "there is nothing; wanted layers of 2 or more, or dropout_output"
            )

    @classmethod
    def of_preset(cls, name: str) -> "Config":
        """The options of a recipe, before any flag."""
        return with_options(cls(recipe=name), load_recipe(name).OPTIONS)

    @property
    def log_positions(self) -> bool:
        """Whether the gradient is logged by its position in a chunk: where chunks are whole."""
        stream = self.data.batching == "stream" and not self.data.random_length
        return self.log_gradient_flow and stream


def with_options(config: Any, options: Mapping[str, Any]) -> Any:
    """`config` with fields replaced by name, those of nested dataclasses too.

    Raises:
      ValueError: a name that is no field.
    """
    replaced, left = _replace(config, dict(options))
    if left:
        raise ValueError(f"no option is called {', '.join(left)}")
    return replaced


def _replace(config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name], options = _replace(value, options)
        elif field.name in options:
            changes[field.name] = options.pop(field.name)
    return dataclasses.replace(config, **changes), options
