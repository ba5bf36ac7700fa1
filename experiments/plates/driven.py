"""A recurrent layer at its start, driven by Gaussian inputs: what most figures look at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, CellParams
from lm.gradients.flow import inject_at, pull_back_log
from lm.log_space import Scaled
from lm.recurrence import project, run_forward, unroll
from lm.scans import Trace


class Driven(NamedTuple):
    """What a layer is driven by, after steps that let its state settle."""

    state: Any  # s_0, fields [B, H]
    x: jax.Array  # [T, B, D]
    d_h: jax.Array  # the loss's gradient dL_T/dh_T, N(0, 1) [B, H]


def drive(
    key: jax.Array,
    cell: Cell,
    params: CellParams,
    time: int,
    rows: int = 1,
    *,
    scale: jax.Array | float = 1.0,
    settle: int = 0,
) -> Driven:
    """Inputs x ~ N(0, scale^2) for `settle` steps that are not looked at, and `time` that are."""
    key_x, key_loss = jax.random.split(key)
    size, dtype = params.w_x.shape[0], params.w_x.dtype
    hidden = params.w_h.shape[0]
    x = jax.random.normal(key_x, (settle + time, rows, size), dtype) * jnp.asarray(scale, dtype)
    state = cell.init_state(rows, hidden, dtype)
    if settle:
        state, _ = unroll(cell, params, state, x[:settle])
    return Driven(state, x[settle:], jax.random.normal(key_loss, (rows, hidden), dtype))


def pull_back_last(cell: Cell, params: CellParams, driven: Driven) -> tuple[Trace, Scaled]:
    """The forward pass, and dL_T/du_t of a loss at the last step: (trace, delta)."""
    z = project(driven.x, params.w_x, params.b)
    _, trace = run_forward(cell, params.w_h, params.vectors, driven.state, z, None)
    time = driven.x.shape[0]
    return trace, pull_back_log(cell, params, trace, inject_at(time, time - 1, driven.d_h)).delta
