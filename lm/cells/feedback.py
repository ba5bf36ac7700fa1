"""Cells whose recurrent product reads more of the state than h: what goes where.

    r_t = [h_t, q_t, ..]        h and the fields of `Cell.feedback`, R numbers in all
    u_t = r_{t-1} W             W [R, K], one product a step, as ever

A field of the feedback is seen by the first few gates alone, so W has blocks of zeros. They are no
parameters: W_h holds the other blocks side by side, [H, n H], those of h first, and `spread` lays
them out. Of a cell without feedback r is h, and W is W_h.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell


def read_state(cell: Cell, state: Any) -> jax.Array:
    """r_t, what the product reads. Fields [..., H] -> [..., R]."""
    if not cell.feedback:
        h: jax.Array = state.h
        return h
    return jnp.concatenate(
        [state.h, *(getattr(state, fed.field) for fed in cell.feedback)], axis=-1
    )


def send_back(cell: Cell, d_state: Any, d_read: jax.Array) -> Any:
    """Add dL/dr [B, R] to the cotangent of the state it was read from."""
    if not cell.feedback:
        return d_state._replace(h=d_state.h + d_read)
    fields = ("h", *(fed.field for fed in cell.feedback))
    parts = jnp.split(d_read, len(fields), axis=-1)
    return d_state._replace(
        **{name: getattr(d_state, name) + part for name, part in zip(fields, parts, strict=True)}
    )


def wires(cell: Cell, hidden: int) -> list[tuple[slice, slice]]:
    """(rows, columns) of each block of W that is not zero by construction, h's first."""
    widths = [len(cell.gates), *(fed.gates for fed in cell.feedback)]
    return [
        (slice(k * hidden, (k + 1) * hidden), slice(0, width * hidden))
        for k, width in enumerate(widths)
    ]


def spread(cell: Cell, w_h: jax.Array) -> jax.Array:
    """W_h [H, n H] -> W [R, K]."""
    if not cell.feedback:
        return w_h
    hidden = w_h.shape[0]
    size = (1 + len(cell.feedback)) * hidden
    w, start = jnp.zeros((size, len(cell.gates) * hidden), w_h.dtype), 0
    for rows, columns in wires(cell, hidden):
        w = w.at[rows, columns].set(w_h[:, start : start + columns.stop])
        start += columns.stop
    return w


def gather(cell: Cell, w: jax.Array) -> jax.Array:
    """The blocks of W that are parameters, side by side: [..., R, K] -> [..., H, n H]."""
    if not cell.feedback:
        return w
    hidden = w.shape[-1] // len(cell.gates)
    return jnp.concatenate(
        [w[..., rows, columns] for rows, columns in wires(cell, hidden)], axis=-1
    )


def recurrent_product(cell: Cell, state: Any, w_h: jax.Array) -> jax.Array:
    """u of the next step. Fields [B, H] -> [B, K]."""
    return read_state(cell, state) @ spread(cell, w_h)
