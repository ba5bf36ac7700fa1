"""How fast is a training step, and who is faster?

Whole training steps (embedding, layers, softmax, loss, backward, clip, SGD) and the recurrent layer
alone, ours against PyTorch, Flax (linen and nnx), Haiku and Equinox, on the same weights and the
same batch; what is not installed is skipped (`pip install -e .[bench]`). Each contestant runs in a
process of its own, in turns of about `--seconds`, so that thread pools do not disturb each other
and what else the machine does falls on all alike; medians count. Before anything is compared,
the first losses are: a contestant that does not do the same work stops the run.

Prints milliseconds, ratios, tokens a second, the share of the machine's own matrix-product peak
(the better of XLA's and PyTorch's, measured in the same run), memory and compilation; saves
results.json and a figure.

    ./launch.sh throughput                          LSTM, six sizes: 8 minutes on 2 cores
    ./launch.sh throughput --sizes=small,char --cells=rnn,gru,lstm
    ./launch.sh throughput --sizes=32x100x256x2x5000 --contestants=ours,torch --parts=step
    ./launch.sh throughput --parts=engine           the backward pass against autodiff of a scan
    ./launch.sh throughput --sizes=medium,awd --precision=tf32      on a GPU, cuDNN by two ways
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments import flags
from experiments.speed.contestants import CONTESTANTS, DEFAULT
from experiments.speed.work import SIZES, parse_size
from lm.cells import CELLS
from lm.config import option, validate

PARTS = ("step", "layer", "engine", "lengths", "memory")
COMPARED = ("step", "layer")  # with other libraries
USED_BY = {  # option -> the parts that it says anything to; any other option: all
    "cells": (*COMPARED, "engine"),
    "sizes": (*COMPARED, "engine"),
    "contestants": COMPARED,
    "rounds": COMPARED,
    "seconds": COMPARED,
    "repeats": ("engine", "lengths"),
    "lengths": ("lengths",),
}
LENGTHS_CELLS = ("rnn", "gru", "lstm", "mingru", "minlstm")
LENGTHS_BATCH, LENGTHS_HIDDEN = 8, 128
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Config:
    """Options of throughput."""

    omit: ClassVar[tuple[str, ...]] = ("given",)  # no flag

    parts: tuple[str, ...] = option(
        ("step", "layer"),
        "what to time: step (training), layer (one layer, forward and backward), engine (that "
        "layer against autodiff of lax.scan), lengths (a layer's time against T, beside cells that "
        "are parallel in time), memory (of long rows, and of large vocabularies)",
        choices=PARTS,
    )
    cells: tuple[str, ...] = option(
        ("lstm",), "cells to time; step and layer: rnn, gru, lstm", choices=CELLS
    )
    sizes: tuple[str, ...] = option(
        ("small", "medium", "large", "char", "char-large", "wikitext"),
        "BxTxHxLAYERSxV, as 20x35x650x2x10000, or a name: "
        + ", ".join(f"{name} = {text}" for name, text in SIZES.items()),
    )
    contestants: tuple[str, ...] = option(
        DEFAULT,
        "who takes part, ours among them (cudnn: ours with jax.experimental.rnn, on a GPU, lstm; "
        "ours10: ten steps a dispatch)",
        choices=CONTESTANTS,
    )
    precision: str = option(
        "float32", "of the matrix products; tf32 needs a GPU", choices=PRECISIONS
    )
    rounds: int = option(5, "turns of each contestant that count", least=1, most=1000)
    seconds: float = option(0.3, "length of a turn, at least three steps", least=0.001, most=600)
    repeats: int = option(
        21, "engine, lengths: timed runs of each, of which the median counts", least=3
    )
    lengths: tuple[int, ...] = option(
        (64, 256, 1024, 4096), "lengths: steps of the sequence, T", least=1, most=10**6
    )
    run: str = option("", "folder of the run; empty: runs/throughput-<date>-<time>")
    given: tuple[str, ...] = option((), "names of the options that were typed")

    def __post_init__(self) -> None:
        validate(self)
        for name, values in (
            ("parts", self.parts),
            ("cells", self.cells),
            ("sizes", self.sizes),
            ("contestants", self.contestants),
            ("lengths", self.lengths),
        ):
            if not values:
                raise ValueError(f"{name} is empty; wanted at least one")
        for text in self.sizes:
            parse_size(text)
        for name in self.given:
            users = USED_BY.get(name, self.parts)
            if not set(users) & set(self.parts):
                raise ValueError(
                    f"{name} is given with --parts={','.join(self.parts)}, which does not use it; "
                    f"wanted it with {' or '.join(users)} among the parts"
                )
        alone = [part for part in self.parts if part not in COMPARED]
        if alone and self.precision != "float32":
            raise ValueError(
                f"precision is {self.precision} beside the part {alone[0]}, which is in float32; "
                f"wanted it with --parts={','.join(COMPARED)} alone"
            )
        if not set(self.parts) & set(COMPARED):
            return
        if "ours" not in self.contestants:
            raise ValueError(
                f"contestants is {','.join(self.contestants)}; wanted ours among them, which the "
                "others are compared with"
            )
        for cell in self.cells:
            if not any(cell in c.cells for name, c in CONTESTANTS.items() if name != "ours"):
                raise ValueError(
                    f"cells holds {cell}, which no other library has; wanted rnn, gru or lstm, or "
                    "--parts=engine"
                )


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from experiments import run_folder
from experiments.speed import drawing, tables
from experiments.speed.contestants import installed
from experiments.speed.rounds import time_size, turns
from experiments.speed.work import Work


def run(config: Config) -> Path:
    """Time, print, save, draw. Returns the run's folder."""
    import jax

    # Before this process's own JAX takes the memory of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    keeps = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed here too
    try:
        return measure_parts(config)
    finally:
        jax.config.update("jax_enable_compilation_cache", keeps)


def measure_parts(config: Config) -> Path:
    """`run`, in a process whose compilations are its own."""
    compared = bool(set(config.parts) & set(COMPARED))
    names = choose(config) if compared else []
    folder = run_folder.create(config.run, "throughput")
    run_folder.write_start(folder, config, {})
    results: dict[str, Any] = {"precision": config.precision}
    if compared:
        results |= compare(config, names, folder)
    others: dict[str, Callable[[Config], list[dict[str, Any]]]] = {
        "engine": time_engine,
        "lengths": time_against_length,
        "memory": measure_memory,
    }
    for part, measure in others.items():
        if part in config.parts:
            results[part] = measure(config)
            run_folder.write_json(folder / "results.json", results)
    paths = drawing.plot(folder)
    print(f"run: {folder}" + (f"    figure: {paths[0]}" if paths else ""))
    return folder


def choose(config: Config) -> list[str]:
    """Who takes part, and, once, who does not and why.

    Raises:
      ValueError: a precision that the machine does not have.
    """
    import jax

    gpu = jax.default_backend() != "cpu"
    if config.precision == "tf32" and not gpu:
        raise ValueError("precision is tf32, which is a GPU's; wanted float32 or bfloat16 here")
    names = []
    for name in dict.fromkeys(config.contestants):
        contestant = CONTESTANTS[name]
        if not installed(name):
            print(
                f"{contestant.label} is not installed and is left out: pip install "
                f"{contestant.install}, or .[bench] for all",
                file=sys.stderr,
            )
        elif contestant.gpu_only and not gpu:
            if config.contestants != DEFAULT:
                print(f"{contestant.label} needs a GPU and is left out", file=sys.stderr)
        else:
            names.append(name)
    for cell in config.cells:
        say_what_differs(cell, names)
    return names


def say_what_differs(cell: str, names: list[str]) -> None:
    """Who lacks a cell, and whose differs."""
    for name in names:
        contestant = CONTESTANTS[name]
        if cell not in contestant.cells:
            print(f"{contestant.label} has no {cell} and is left out there", file=sys.stderr)
        elif cell in contestant.differs:
            print(f"{contestant.label}, {cell}: {contestant.differs[cell]}", file=sys.stderr)


def compare(config: Config, names: list[str], folder: Path) -> dict[str, Any]:
    """Steps and layers against other libraries, size by size; what is done is kept."""
    parts = [part for part in COMPARED if part in config.parts]
    plan = [
        (
            Work(cell, parse_size(text), config.precision),
            [n for n in names if cell in CONTESTANTS[n].cells],
        )
        for cell in config.cells
        for text in dict.fromkeys(config.sizes)
    ]
    found: dict[str, Any] = {"precision": config.precision, "rows": [], "peaks": {}}
    started = time.monotonic()
    total = sum(turns(who, parts, config.rounds) for _, who in plan)
    with tqdm(total=total, unit="turn", dynamic_ncols=True, smoothing=0) as bar:

        def tick(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        for work, who in plan:
            rows, peaks = time_size(work, who, parts, config.rounds, config.seconds, tick)
            found["rows"] += rows
            for name, speed in peaks.items():
                found["peaks"][name] = max(speed, found["peaks"].get(name, 0.0))
            found["summary"] = tables.summarise(found["rows"])
            found["seconds"] = time.monotonic() - started
            run_folder.write_json(folder / "results.json", found)
    print_comparison(found)
    return found


def print_comparison(found: dict[str, Any]) -> None:
    """Tables of each part and cell, then what is to be known about them."""
    peak = max(found["peaks"].values(), default=0.0)
    rows = sorted(found["rows"], key=lambda row: COMPARED.index(row["part"]))
    tables.print_rows(rows, peak)
    tables.print_summary(rows, peak)
    each = ", ".join(
        f"{'XLA' if name == 'ours' else CONTESTANTS[name].label} {speed / 1e9:,.0f}"
        for name, speed in found["peaks"].items()
    )
    print(f"large matrix products at their best, GFLOP/s: {each}")
    for refused in tables.refusals(rows):
        print(refused)


def time_engine(config: Config) -> list[dict[str, Any]]:
    """The engine's backward pass against autodiff, each cell at each B, T, H."""
    from experiments.speed.engine import print_layers, time_layer

    rows = []
    with tqdm(total=len(config.cells) * len(config.sizes), unit="layer", dynamic_ncols=True) as bar:
        for cell in config.cells:
            for text in config.sizes:
                bar.set_description_str(f"engine: {cell} {text}")
                rows.append(time_layer(cell, parse_size(text), config.repeats))
                bar.update()
    print_layers(rows, config.repeats)
    return rows


def time_against_length(config: Config) -> list[dict[str, Any]]:
    """A layer's time against T, cells with and without a recurrent product."""
    from experiments.speed.lengths import print_lengths, time_lengths

    rows: list[dict[str, Any]] = []
    with tqdm(config.lengths, unit="length", dynamic_ncols=True) as bar:
        for length in bar:
            bar.set_description_str(f"lengths: T = {length:,}")
            rows += time_lengths(
                LENGTHS_CELLS, (length,), LENGTHS_BATCH, LENGTHS_HIDDEN, config.repeats
            )
    print_lengths(rows)
    return rows


def measure_memory(_: Config) -> list[dict[str, Any]]:
    """What long rows and large vocabularies take, each in a process of its own."""
    from experiments.speed import memory

    rows = list(tqdm(memory.each_row(), "memory", len(memory.ROWS), unit="row", dynamic_ncols=True))
    print()
    memory.print_memory(rows)
    return rows


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
