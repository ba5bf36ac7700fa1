"""What a figure of the gallery is, and the options that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.plates import PLATES
from lm.cells import CELLS
from lm.config import DataConfig, option, validate

Arrays = dict[str, np.ndarray]
Found = dict[str, Any]  # "finding", a sentence, and the numbers behind it
Done = Callable[[], None]  # called after each part of a figure's work
MOST_CELLS = 4  # panels side by side


@dataclass(frozen=True)
class Config:
    """Options of gallery."""

    figures: tuple[str, ...] = option(tuple(PLATES), "figures to draw", choices=PLATES)
    cells: tuple[str, ...] = option(
        ("rnn", "lstm", "gru"), "cells that certificate, gram and spectrum compare", choices=CELLS
    )
    hidden_size: int = option(
        64,
        "units; underflow has twice, spectrum and lyapunov half as many",
        least=8,
        most=1024,
    )
    seeds: int = option(
        8, "networks of certificate, gram and saliency, seeded 0 upward", least=1, most=1000
    )
    lags: int = option(400, "steps back that gradients are followed", least=16, most=10_000)
    forget_bias: float = option(
        1.0, "bias of the LSTM's forget gate, in gram, spectrum and saliency"
    )
    steps: int = option(600, "training steps of lyapunov's language models", least=1)
    task_steps: int = option(800, "training steps of saliency's networks", least=1)
    model_seeds: int = option(2, "language models a forget bias, in lyapunov", least=1, most=100)
    run: str = option("", "folder of the run; empty: runs/gallery-<date>-<time>")
    data: DataConfig = DataConfig(max_vocabulary=2000)

    def __post_init__(self) -> None:
        validate(self)
        for name, values, most in (
            ("figures", self.figures, len(PLATES)),
            ("cells", self.cells, MOST_CELLS),
        ):
            if not 0 < len(values) <= most or len(set(values)) < len(values):
                raise ValueError(
                    f"{name} is {','.join(values)!r}; wanted 1 to {most} of them, each once"
                )


def check_nothing(config: Config) -> None:
    """A figure that can be drawn with every valid Config."""


@dataclass(frozen=True)
class Plate:
    """One figure.

    Attributes:
      measure: (config, done) -> arrays, all that the figure is drawn from.
      describe: (config, arrays) -> Found: the finding, which is the figure's title.
      draw: (config, arrays) -> a matplotlib figure.
      parts: config -> how often `measure` calls `done`.
      check: raises ValueError for what `measure` would refuse, before anything is measured.
    """

    measure: Callable[[Config, Done], Arrays]
    describe: Callable[[Config, Arrays], Found]
    draw: Callable[[Config, Arrays], Any]
    parts: Callable[[Config], int]
    check: Callable[[Config], None] = check_nothing
