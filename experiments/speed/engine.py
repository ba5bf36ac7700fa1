"""One layer by the engine, and by autodiff through lax.scan, interleaved in one process."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.work import Size
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams, init_params
from lm.cells.feedback import recurrent_product
from lm.recurrence import as_step, project, unroll, unroll_step

Runner = Callable[[CellParams, Any, jax.Array], jax.Array]


def make_runners(cell: Cell) -> dict[str, Runner]:
    """The three ways to run a layer, each (params, state, x) -> h [T, B, H]."""

    def engine(params: CellParams, state: Any, x: jax.Array) -> jax.Array:
        return unroll(cell, params, state, x)[1]

    def hoisted(params: CellParams, state: Any, x: jax.Array) -> jax.Array:
        def step(params: CellParams, s: Any, z_t: jax.Array) -> tuple[Any, jax.Array]:
            s = cell.gate(params.vectors, s, z_t, recurrent_product(cell, s, params.w_h))
            return s, s.h

        return unroll_step(step, params, state, project(x, params.w_x, params.b))[1]

    def scan(params: CellParams, state: Any, x: jax.Array) -> jax.Array:
        return unroll_step(as_step(cell), params, state, x)[1]

    return {"engine": engine, "hoisted": hoisted, "scan": scan}


def time_layer(cell_name: str, size: Size, repeats: int) -> dict[str, Any]:
    """Median milliseconds of each way, ratios to the engine's, and how far gradients differ."""
    cell, hidden = CELLS[cell_name], size.hidden
    key_params, key_x, key_w = jax.random.split(jax.random.key(0), 3)
    params = init_params(key_params, cell, hidden, hidden)
    state = cell.init_state(size.batch, hidden)
    shape = (size.length, size.batch, hidden)
    x, weights = jax.random.normal(key_x, shape), jax.random.normal(key_w, shape)
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
        "cell": cell_name,
        "batch_size": size.batch,
        "length": size.length,
        "hidden_size": hidden,
        **{f"{name}_ms": value for name, value in medians.items()},
        "hoisted_ratio": medians["hoisted"] / medians["engine"],
        "scan_ratio": medians["scan"] / medians["engine"],
        "difference": max(
            float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
            for other in ("hoisted", "scan")
            for a, b in zip(
                jax.tree.leaves(found["engine"]), jax.tree.leaves(found[other]), strict=True
            )
        ),
    }


def print_layers(rows: list[dict[str, Any]], repeats: int) -> None:
    """The table of `time_layer`'s rows."""
    print("\nthe engine against autodiff through lax.scan, one layer, forward and backward")
    print(f"{'cell':6}{'B, T, H':>15}{'engine':>11}{'hoisted':>16}{'scan':>16}{'difference':>12}")
    for row in rows:
        size = f"{row['batch_size']}, {row['length']}, {row['hidden_size']}"
        print(
            f"{row['cell']:6}{size:>15}{row['engine_ms']:>8.2f} ms"
            f"{row['hoisted_ms']:>8.2f} ({row['hoisted_ratio']:.2f}x)"
            f"{row['scan_ms']:>8.2f} ({row['scan_ratio']:.2f}x){row['difference']:>12.1e}"
        )
    print(f"median of {repeats}; ratios: times the engine's time")
