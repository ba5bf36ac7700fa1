"""Time against the length of the sequence: what does it cost that time runs step by step?

One layer, forward and backward, through the engine. A cell with a recurrent product takes T steps
one after another, each a product; minGRU and minLSTM have their products before the recurrence and
run what is left in parallel, or in steps that only multiply and add, whichever is faster on the
machine (`lm.linear_recurrence`).
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params
from lm.recurrence import unroll

Row = dict[str, Any]


def time_lengths(
    cells: Sequence[str], lengths: Sequence[int], batch: int, hidden: int, repeats: int
) -> list[Row]:
    """Time every cell at every length, the cells in turns.

    Args:
      cells: names in CELLS.
      lengths: T, steps.
      batch: B, rows.
      hidden: H, and the size of the inputs.
      repeats: timed runs of each cell and length; the first run of each is not counted.

    Returns:
      a row for each cell and length: cell, length, batch_size, hidden_size, ms (the median),
      ms_quartiles, us_per_step, compile_seconds.
    """
    rows = []
    for length in lengths:
        programs = {cell: make_program(cell, length, batch, hidden) for cell in cells}
        first = {cell: seconds_of(*programs[cell]) for cell in cells}
        taken: dict[str, list[float]] = {cell: [] for cell in cells}
        for _ in range(repeats):
            for cell in cells:
                taken[cell].append(seconds_of(*programs[cell]))
        for cell in cells:
            low, median, high = np.percentile(taken[cell], [25, 50, 75]).tolist()
            rows.append(
                {
                    "cell": cell,
                    "length": length,
                    "batch_size": batch,
                    "hidden_size": hidden,
                    "ms": 1e3 * median,
                    "ms_quartiles": [1e3 * low, 1e3 * high],
                    "us_per_step": 1e6 * median / length,
                    "compile_seconds": max(0.0, first[cell] - median),
                }
            )
    return rows


def make_program(
    cell_name: str, length: int, batch: int, hidden: int
) -> tuple[Any, tuple[Any, ...]]:
    """(compiled gradient of one layer, its arguments): dL/dparams and dL/dx of L = <h, weights>."""
    cell = CELLS[cell_name]
    key_params, key_x, key_weights = jax.random.split(jax.random.key(0), 3)
    params = init_params(key_params, cell, hidden, hidden)
    state = cell.init_state(batch, hidden)
    x, weights = (jax.random.normal(key, (length, batch, hidden)) for key in (key_x, key_weights))

    def loss(params: CellParams, x: jax.Array, state: Any, weights: jax.Array) -> jax.Array:
        return jnp.vdot(unroll(cell, params, state, x)[1], weights)

    return jax.jit(jax.grad(loss, argnums=(0, 1))), (params, x, state, weights)


def seconds_of(program: Any, arguments: tuple[Any, ...]) -> float:
    """How long one call takes, its results included."""
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def print_lengths(rows: Sequence[Row]) -> None:
    """The table of `time_lengths`' rows: milliseconds, a line a length, a column a cell."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    found = {(row["cell"], row["length"]): row for row in rows}
    sizes = f"B = {rows[0]['batch_size']}, H = {rows[0]['hidden_size']}"
    print(f"\none layer, forward and backward, {sizes}: milliseconds (microseconds a step)")
    print(f"{'T':>8}" + "".join(f"{cell:>19}" for cell in cells))
    for length in dict.fromkeys(row["length"] for row in rows):
        line = [found[cell, length] for cell in cells]
        print(
            f"{length:>8,}" + "".join(f"{r['ms']:>10.2f} ({r['us_per_step']:6.2f})" for r in line)
        )
