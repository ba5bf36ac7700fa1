"""What does the engine's own backward pass buy over autodiff through `lax.scan`?

One recurrent layer, forward and backward, three ways in one process, interleaved:
`engine` (lm.recurrence.unroll), `hoisted` (autodiff of a scan with the input products lifted
out of it) and `scan` (autodiff of a scan of the cell as a textbook writes it). Prints the
median milliseconds, the ratios, and the largest difference between the gradients.

Prediction: the engine is ahead, most where the weights are large beside the batch, since
autodiff adds a weight-sized gradient at every step.

    ./launch.sh throughput                       about half a minute on 2 CPU cores
    ./launch.sh throughput --cells=gru --hidden_sizes=256
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

from experiments import flags
from lm.cells import CELLS
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of throughput."""

    cells: tuple[str, ...] = option(("rnn", "lstm"), "cells to time", choices=CELLS)
    hidden_sizes: tuple[int, ...] = option((128, 512), "H, and the input size", least=1)
    batch_size: int = option(32, "rows", least=1)
    length: int = option(64, "steps", least=1)
    repeats: int = option(21, "timed runs of each, of which the median counts", least=3)
    run: str = option("", "folder of the run; empty: runs/throughput-<date>-<time>")

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run_folder
from lm.cells.cell import Cell, CellParams, init_params
from lm.recurrence import as_step, project, unroll, unroll_step

Runner = Callable[[CellParams, Any, jax.Array], jax.Array]


def run(config: Config) -> Path:
    """Time, print, save. Returns the run's folder."""
    folder = run_folder.create(config.run, "throughput")
    run_folder.write_start(folder, config, {})
    rows = []
    print(f"{'cell':6}{'B, T, H':>15}{'engine':>11}{'hoisted':>16}{'scan':>16}{'difference':>12}")
    for cell, hidden in itertools.product(config.cells, config.hidden_sizes):
        row = time_layer(CELLS[cell], hidden, config.batch_size, config.length, config.repeats)
        rows.append({"cell": cell, "hidden_size": hidden, **row})
        size = f"{config.batch_size}, {config.length}, {hidden}"
        print(
            f"{cell:6}{size:>15}{row['engine_ms']:>8.2f} ms"
            f"{row['hoisted_ms']:>8.2f} ({row['hoisted_ratio']:.2f}x)"
            f"{row['scan_ms']:>8.2f} ({row['scan_ratio']:.2f}x){row['difference']:>12.1e}"
        )
    run_folder.write_json(folder / "results.json", {"rows": rows})
    print(f"median of {config.repeats}, forward and backward; ratios: times the engine's time")
    print(f"run: {folder}")
    return folder


def make_runners(cell: Cell) -> dict[str, Runner]:
    """The three ways to run a layer, each (params, state, x) -> h [T, B, H]."""

    def engine(params: CellParams, state: Any, x: jax.Array) -> jax.Array:
        return unroll(cell, params, state, x)[1]

    def hoisted(params: CellParams, state: Any, x: jax.Array) -> jax.Array:
        def step(params: CellParams, s: Any, z_t: jax.Array) -> tuple[Any, jax.Array]:
            s = cell.gate(params.vectors, s, z_t, s.h @ params.w_h)
            return s, s.h

        return unroll_step(step, params, state, project(x, params.w_x, params.b))[1]

    def scan(params: CellParams, state: Any, x: jax.Array) -> jax.Array:
        return unroll_step(as_step(cell), params, state, x)[1]

    return {"engine": engine, "hoisted": hoisted, "scan": scan}


def time_layer(cell: Cell, hidden: int, batch: int, length: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of each way, ratios to the engine's, and how far gradients differ."""
    key_params, key_x, key_w = jax.random.split(jax.random.key(0), 3)
    params = init_params(key_params, cell, hidden, hidden)
    state = cell.init_state(batch, hidden)
    x = jax.random.normal(key_x, (length, batch, hidden))
    weights = jax.random.normal(key_w, (length, batch, hidden))
    grads: dict[str, Any] = {}
    for name, runner in make_runners(cell).items():

        def loss(
            params: CellParams,
            x: jax.Array,
            state: Any,
            weights: jax.Array,
            runner: Runner = runner,
        ) -> jax.Array:
            return jnp.vdot(runner(params, state, x), weights)

        grads[name] = jax.jit(jax.grad(loss, argnums=(0, 1)))
    found = {
        name: jax.block_until_ready(grad(params, x, state, weights)) for name, grad in grads.items()
    }
    times: dict[str, list[float]] = {name: [] for name in grads}
    for _ in range(repeats):
        for name, grad in grads.items():
            start = time.perf_counter()
            jax.block_until_ready(grad(params, x, state, weights))
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        **{f"{name}_ms": value for name, value in medians.items()},
        "hoisted_ratio": medians["hoisted"] / medians["engine"],
        "scan_ratio": medians["scan"] / medians["engine"],
        "difference": max(
            float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
            for a, b in zip(
                jax.tree.leaves(found["engine"]), jax.tree.leaves(found["scan"]), strict=True
            )
        ),
    }


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
