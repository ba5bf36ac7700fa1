"""The engine's loops as `lax.scan`: of any cell, on any backend, with masks.

Forward, a step is the recurrent product and the gates, and leaves a row of the tape. Backward, a
step multiplies and adds what the tape says, and takes the one product back. Training and the
laboratory (`lm.gradients`) call the same `pull_back_step`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.cells.cell import Cell, Pulled, Tape, Vectors
from lm.cells.feedback import read_state, send_back, spread
from lm.native.loop import Cotangents
from lm.native.packed_product import Packed, multiply, pack_transposed_weights, pack_weights
from lm.products import dot

RowStep = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


class Trace(NamedTuple):
    """What a forward scan leaves behind for the backward one."""

    h_first: jax.Array  # h_0 [B, H]
    h: jax.Array  # h_1 .. h_T [T, B, H]
    tape: Tape  # leaves [T, ...]
    mask: jax.Array | None  # [T, B]
    state_mask: jax.Array | None = None  # [B, H]
    read: jax.Array | None = None  # of a cell with feedback: r_0 .. r_{T-1} [T, B, R]


def scan_states(
    cell: Cell,
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
    mask: jax.Array | None = None,
    state_mask: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Any, jax.Array]:
    """The forward scan without a tape. z [T, B, K] -> (s_T, h [T, B, H])."""
    weights = lay_out(spread(cell, w_h), z.shape[:2], dtype)

    def step(s_prev: Any, inputs: Any) -> tuple[Any, jax.Array]:
        z_t, mask_t = inputs
        u_t = product(read_state(cell, drop_h(s_prev, state_mask)), weights, dtype)
        s_t = select(mask_t, cell.gate(vectors, s_prev, z_t, u_t), s_prev)
        return s_t, s_t.h

    return lax.scan(step, state, (z, mask), unroll=steps_a_round())


def scan_forward(
    cell: Cell,
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
    mask: jax.Array | None = None,
    state_mask: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Any, Trace]:
    """`run_forward` by a scan, of any cell on any backend."""
    weights = lay_out(spread(cell, w_h), z.shape[:2], dtype)
    field = field_over_z(cell, z.shape[1], dtype)

    def step(s_prev: Any, z_t: jax.Array, mask_t: jax.Array | None) -> tuple[Any, Any, Any]:
        read = read_state(cell, drop_h(s_prev, state_mask))
        s_t, tape_t = cell.linearize(vectors, s_prev, z_t, product(read, weights, dtype))
        s_t = select(mask_t, s_t, s_prev)
        row, rest = part_tape(tape_t, field)
        return s_t, row, (s_t.h, read if cell.feedback else None, rest)

    scan = scan_beside if field is None else scan_over
    last, rows, (h, read, rest) = scan(step, state, z, mask)
    return last, Trace(state.h, h, join_tape(rows, rest, field), mask, state_mask, read)


def lay_out(w: jax.Array, time_batch: tuple[int, ...], dtype: Any) -> jax.Array | Packed:
    """W [R, K] as the product of every step takes it: packed or rounded once, outside the scan.

    Args:
      time_batch: (T, B) of the scan.
    """
    return pack_weights(w, time_batch) if dtype is None else w.astype(dtype)


def product(x: jax.Array, weights: jax.Array | Packed, dtype: Any = None) -> jax.Array:
    """The product inside a scan, with what `lay_out` or `transposed_weights` made of W."""
    return multiply(x, weights) if isinstance(weights, Packed) else dot(x, weights, dtype)


def drop_h(state: Any, mask: jax.Array | None) -> Any:
    """The state with dropout of its h [B, H] alone."""
    return state if mask is None else state._replace(h=drop(state.h, mask))


def steps_a_round() -> int:
    """Steps of the sequence in a round of a compiled loop.

    On a GPU what a round costs beside its kernels is shared by five: a training step at B = 20,
    T = 35, H = 650 takes 2.5 ms on an H100 in TF32, not 3.0. On a CPU one is fastest.
    """
    return 5 if jax.default_backend() == "gpu" else 1


def field_over_z(cell: Cell, batch: int, dtype: Any) -> str | None:
    """The field of the tape that is written over z, if any.

    None at a batch of one and where products are rounded, since XLA's CPU backend would copy all
    of z at every step, and on other backends, whose compiled loops nobody has read yet.
    """
    quick = batch > 1 and dtype is None and jax.default_backend() == "cpu"
    return cell.written_over_z if quick else None


def part_tape(tape: Tape, field: str | None) -> tuple[Any, Any]:
    """(what takes the place of z, the rest): the field and the others, or all and nothing."""
    if field is None:
        return tape, None
    return getattr(tape, field), tape._replace(**{field: None})


def join_tape(rows: Any, rest: Any, field: str | None) -> Tape:
    """The tape of which `part_tape` made two."""
    return rows if field is None else rest._replace(**{field: rows})


def scan_beside(
    step: RowStep, carry: Any, rows: Any, inputs: Any, reverse: bool = False
) -> tuple[Any, Any, Any]:
    """lax.scan of `step`: (carry, row, input) -> (carry, new row, output).

    Returns:
      (the last carry, the new rows, the outputs).
    """

    def body(carry: Any, at_t: Any) -> tuple[Any, Any]:
        carry, row, output = step(carry, *at_t)
        return carry, (row, output)

    carry, (rows, outputs) = lax.scan(
        body, carry, (rows, inputs), reverse=reverse, unroll=steps_a_round()
    )
    return carry, rows, outputs


def scan_over(
    step: RowStep, carry: Any, rows: jax.Array, inputs: Any, reverse: bool = False
) -> tuple[Any, Any, Any]:
    """`scan_beside`, each new row written where its row was.

    XLA does so in place only where a row's every use comes before the new row: where the new row
    is computed from all of them. Else it copies all rows at every step, and time grows with the
    square of T: tests/test_in_place.py reads the compiled loops of all cells for such copies.
    """

    def body(carry: Any, at_t: Any) -> tuple[Any, Any]:
        (carry, rows), (t, inputs_t) = carry, at_t
        row = lax.dynamic_index_in_dim(rows, t, keepdims=False)
        carry, row, output = step(carry, row, inputs_t)
        return (carry, lax.dynamic_update_index_in_dim(rows, row, t, axis=0)), output

    steps = jnp.arange(len(rows))
    (carry, rows), outputs = lax.scan(body, (carry, rows), (steps, inputs), reverse=reverse)
    return carry, rows, outputs


def pull_back_step(
    cell: Cell,
    w_transposed: jax.Array | Packed,
    tape_t: Tape,
    mask_t: jax.Array | None,
    d_s: Any,
    state_mask: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Any, Pulled]:
    """One step of the backward scan.

    Args:
      w_transposed: [K, R], of `transposed_weights`, once, outside the scan.
      d_s: cotangent of s_t, complete.

    Returns:
      (cotangent of s_{t-1}, Pulled), the first complete but for what L adds at h_{t-1}.
    """
    d_valid = select(mask_t, d_s, jax.tree.map(jnp.zeros_like, d_s))
    pulled = cell.pull_back(tape_t, d_valid)
    d_read = product(pulled.u, w_transposed, dtype)
    if state_mask is not None:
        hidden = state_mask.shape[-1]
        d_read = jnp.concatenate(
            [drop(d_read[:, :hidden], state_mask), d_read[:, hidden:]], axis=-1
        )
    d_prev = send_back(cell, pulled.state, d_read)
    if mask_t is not None:
        d_prev = select(mask_t, d_prev, d_s)
    return d_prev, pulled


def transposed_weights(
    cell: Cell, w_h: jax.Array, time_batch: tuple[int, ...], dtype: Any = None
) -> jax.Array | Packed:
    """What the backward scan multiplies by: W^T [K, R]; of a cell without feedback W_h^T.

    Args:
      time_batch: (T, B) of the scan.
    """
    w = spread(cell, w_h)
    return pack_transposed_weights(w, time_batch) if dtype is None else w.T.astype(dtype)


def scan_backward(
    cell: Cell,
    w_h: jax.Array,
    vectors: Vectors,
    trace: Trace,
    d_h: jax.Array,
    d_last: Any,
    dtype: Any = None,
) -> tuple[Cotangents, Any]:
    """The backward scan of any cell on any backend.

    Args:
      d_h: dL/dh_t from above [T, B, H].
      d_last: dL/ds_T beside it, fields [B, H].

    Returns:
      (what it sends back, dL/ds_t with fields [T, B, H]).
    """
    w_transposed = transposed_weights(cell, w_h, d_h.shape[:2], dtype)
    field = field_over_z(cell, d_h.shape[1], dtype)
    rows, rest = part_tape(trace.tape, field)

    def step(carry: Any, row: Any, inputs: Any) -> tuple[Any, jax.Array, Any]:
        d_s, d_vectors = carry
        rest_t, d_h_t, mask_t = inputs
        d_s = d_s._replace(h=d_s.h + d_h_t)
        tape_t = join_tape(row, rest_t, field)
        d_prev, pulled = pull_back_step(
            cell, w_transposed, tape_t, mask_t, d_s, trace.state_mask, dtype
        )
        d_vectors = jax.tree.map(jnp.add, d_vectors, pulled.vectors)
        # Where the gates see z + u alone, dL/dz is dL/du: one array serves both.
        d_u = None if pulled.u is pulled.z else pulled.u
        return (d_prev, d_vectors), pulled.z, (d_u, d_s)

    scan = scan_beside if field is None else scan_over
    first = d_last, jax.tree.map(jnp.zeros_like, vectors)
    (d_first, d_vectors), d_z, (d_u, d_states) = scan(
        step, first, rows, (rest, d_h, trace.mask), reverse=True
    )
    return Cotangents(d_first, d_vectors, d_z, d_u), d_states


def previous_read(trace: Trace) -> jax.Array:
    """What each step's product read: h_0 .. h_{T-1} [T, B, H], or r_0 .. r_{T-1} [T, B, R]."""
    if trace.read is not None:
        return trace.read
    h_prev = jnp.concatenate([trace.h_first[None], trace.h[:-1]])
    return h_prev if trace.state_mask is None else h_prev * trace.state_mask[None]


def drop(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`x` times a dropout mask that broadcasts to its shape, or `x` where there is none."""
    return x if mask is None else x * mask


def select(mask: jax.Array | None, new: Any, old: Any) -> Any:
    """`new` where mask [B] holds, else `old`, leaf by leaf; `new` where there is no mask."""
    if mask is None:
        return new
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b),
        new,
        old,
    )
