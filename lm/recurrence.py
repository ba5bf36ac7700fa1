"""The one engine: run a cell over time, and run its gradient back.

Forward, the input products of all steps are one matrix product, the scan holds the recurrent
product and the gates, and each step leaves a tape of derivative coefficients. Backward, the
scan carries the cotangent of the state alone and emits delta_t = dL/du_t; dW_h is then ONE
product of all h_{t-1} with all delta_t, dW_x and dx one product each. Autodiff of the same
scan would add a weight-sized gradient at every step.

Of a cell with elementwise gates, on a CPU with a C compiler, each scan is one call of `lm.native`:
the same steps, the same tape, the equations those of the cell. What is said of scans holds of both.

What the backward scan emits is what a picture of gradient flow needs, so `lm.gradients` calls
the same `run_forward` and `pull_back_step`; training sums what they emit, the laboratory looks.

Masks: where mask[t, b] is False the state passes through step t unchanged, so a padded
sentence leaves the state that the unpadded one leaves, and no gradient enters the padding.

Probes: a zero added to every state. Its gradient is dL/ds_t, at no cost when not asked for.
Gauges: zeros whose gradient is the norm of what the backward pass carries, for live monitoring.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.alignment import align_layer, narrow, widen
from lm.cells.cell import Cell, CellParams, Pulled, Tape, Vectors
from lm.cells.feedback import gather, read_state, recurrent_product, send_back, spread
from lm.linear_recurrence import run_diagonal
from lm.log_space import log_norm
from lm.native import loop
from lm.native.calls import serves
from lm.native.loop import Cotangents, find_loop
from lm.native.packed_product import Packed, multiply, pack_transposed_weights, pack_weights
from lm.products import TRANSPOSED_LEFT, add_bias, affine, dot

Step = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]
RowStep = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


class Trace(NamedTuple):
    """What a forward scan leaves behind for the backward one."""

    h_first: jax.Array  # h_0 [B, H]
    h: jax.Array  # h_1 .. h_T [T, B, H]
    tape: Tape  # leaves [T, ...]
    mask: jax.Array | None  # [T, B]
    state_mask: jax.Array | None = None  # [B, H]
    read: jax.Array | None = None  # of a cell with feedback: r_0 .. r_{T-1} [T, B, R]


def unroll(
    cell: Cell,
    params: CellParams,
    state: Any,
    x: jax.Array,
    mask: jax.Array | None = None,
    probe: Any = None,
    gauge: jax.Array | None = None,
    state_mask: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Any, jax.Array]:
    """Run `cell` over a sequence.

    Args:
      params: of this layer.
      state: s_0, fields [B, H].
      x: [T, B, D].
      mask: bool [T, B], False on padding; None where nothing is padded.
      probe: a state of zeros with fields [T, B, H]; its gradient is dL/ds_t, the total
        derivative with respect to each field as it enters step t + 1 and the output
        (for an LSTM's c: not through h_t, which is a field of its own).
      gauge: zeros [T]; its gradient is log ||dL/dz_t|| over batch and gates, in nats, read
        off the backward pass as it goes by.
      state_mask: [B, H] that h_{t-1} is multiplied by before the recurrent product of every
        step (Gal & Ghahramani 2016, arXiv:1512.05287); None: nothing is dropped.
      dtype: that operands of products are rounded to; None: none is. Gates, states and sums
        stay as they are.

    Returns:
      (s_T, h): the last state and all outputs [T, B, H], 0 on padding.

    Raises:
      ValueError: where shapes disagree.
    """
    check_shapes(cell, params, state, x, mask)
    params = align_layer(cell, params)
    z = project(x, params.w_x, params.b, dtype)
    return unroll_inputs(cell, params, state, z, mask, probe, gauge, state_mask, dtype)


def unroll_inputs(
    cell: Cell,
    params: CellParams,
    state: Any,
    z: jax.Array,
    mask: jax.Array | None = None,
    probe: Any = None,
    gauge: jax.Array | None = None,
    state_mask: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Any, jax.Array]:
    """`unroll`, given the input products z [T, B, K], biases included.

    The layer may have been filled up by `align_layer`, z with it: states, probes and masks are
    those of its own H units, and so is what is returned.

    Raises:
      ValueError: a dropout mask of the state where the cell has no product for it.
    """
    hidden, width = state.h.shape[-1], len(params.w_h)
    state, probe, state_mask = jax.tree.map(
        lambda leaf: widen(leaf, width), (state, probe, state_mask)
    )
    if gauge is not None:
        z = read_cotangent(z, gauge)
    if cell.diagonal is not None:
        if state_mask is not None:
            raise ValueError(
                f"state_mask is given to a {cell.name}, which has no product with h_{{t-1}}; "
                "wanted None, or a cell that has one"
            )
        last, h = run_diagonal(cell, state, z, mask, probe)
    else:
        last, h = recur(cell, dtype, params.w_h, params.vectors, state, z, mask, probe, state_mask)
    last, h = narrow((last, h), hidden)
    return last, h if mask is None else jnp.where(mask[..., None], h, jnp.zeros_like(h))


def project(x: jax.Array, w_x: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """z = x W_x + b for all steps as one product. [T, B, D] -> [T, B, K].

    Dead inputs of W_x, past those of x, are met by zeros.
    Reshaped to two dimensions: the same product over (T, B) is half as fast on a CPU.
    """
    x = widen(x, len(w_x))
    time, batch, size = x.shape
    return affine(x.reshape(time * batch, size), w_x, b, dtype).reshape(time, batch, -1)


@jax.custom_vjp
def read_cotangent(z: jax.Array, gauge: jax.Array) -> jax.Array:
    """z itself; the gradient of `gauge` [T] is the log norm of z's cotangent, step by step."""
    return z


def _read_forward(z: jax.Array, gauge: jax.Array) -> tuple[jax.Array, None]:
    return z, None


def _read_backward(_: None, d_z: jax.Array) -> tuple[jax.Array, jax.Array]:
    return d_z, log_norm(d_z.reshape(d_z.shape[0], -1))


read_cotangent.defvjp(_read_forward, _read_backward)


def run_forward(
    cell: Cell,
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
    mask: jax.Array | None,
    state_mask: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Any, Trace]:
    """The forward pass with its tape, as one call or as a scan. z [T, B, K] -> (s_T, Trace)."""
    compiled = whole_loop(cell, w_h, vectors, state, z, (mask, state_mask), dtype)
    if compiled is None:
        return scan_forward(cell, w_h, vectors, state, z, mask, state_mask, dtype)

    def scan(w_h: jax.Array, vectors: Vectors, state: Any, z: jax.Array) -> Any:
        last, trace = scan_forward(cell, w_h, vectors, state, z)
        return last, trace.h, trace.tape

    last, h, tape = loop.run_taped(compiled, scan, w_h, vectors, state, z)
    return last, Trace(state.h, h, tape, None)


def whole_loop(
    cell: Cell,
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    sequence: jax.Array,
    masks: Any,
    dtype: Any,
) -> loop.Loop | None:
    """A cell's loops as one call each, where nothing is masked or rounded; None: scans.

    Args:
      state: s_0, or the cotangent of s_T.
      sequence: z [T, B, K], or the cotangent of h [T, B, H].
      masks: None each where there is none.
    """
    widths = sequence.shape[-1], w_h.shape[-1]
    is_plain = dtype is None and not jax.tree.leaves(masks) and serves(sequence)
    if not is_plain or widths[0] not in (len(w_h), widths[1]):
        return None
    return find_loop(cell, w_h, vectors, state, sequence.shape[:2])


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recur(
    cell: Cell,
    dtype: Any,
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
    mask: jax.Array | None,
    probe: Any,
    state_mask: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    """The recurrence proper, given the input products z [T, B, K]."""

    def scan(w_h: jax.Array, vectors: Vectors, state: Any, z: jax.Array) -> Any:
        weights = lay_out(spread(cell, w_h), z.shape[:2], dtype)

        def step(s_prev: Any, inputs: Any) -> tuple[Any, jax.Array]:
            z_t, mask_t = inputs
            u_t = product(read_state(cell, drop_h(s_prev, state_mask)), weights, dtype)
            s_t = select(mask_t, cell.gate(vectors, s_prev, z_t, u_t), s_prev)
            return s_t, s_t.h

        return lax.scan(step, state, (z, mask), unroll=steps_a_round())

    compiled = whole_loop(cell, w_h, vectors, state, z, (mask, state_mask), dtype)
    if compiled is None:
        return scan(w_h, vectors, state, z)
    return loop.run(compiled, scan, w_h, vectors, state, z)


def _recur_forward(
    cell: Cell,
    dtype: Any,
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
    mask: jax.Array | None,
    probe: Any,
    state_mask: jax.Array | None,
) -> tuple[Any, Any]:
    last, trace = run_forward(cell, w_h, vectors, state, z, mask, state_mask, dtype)
    return (last, trace.h), (w_h, vectors, trace, probe is not None)


def _recur_backward(cell: Cell, dtype: Any, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    w_h, vectors, trace, probed = residuals
    d_last, d_h = cotangents

    def scan(
        w_h: jax.Array, vectors: Vectors, tape: Tape, d_h: jax.Array, d_last: Any
    ) -> Cotangents:
        return scan_backward(cell, w_h, vectors, trace._replace(tape=tape), d_h, d_last, dtype)[0]

    masks, d_states = (trace.mask, trace.state_mask), None
    compiled = whole_loop(cell, w_h, vectors, d_last, d_h, masks, dtype)
    if compiled is None or probed:
        pulls, d_states = scan_backward(cell, w_h, vectors, trace, d_h, d_last, dtype)
    else:
        pulls = loop.pull_back(compiled, scan, w_h, vectors, trace.tape, d_h, d_last)
    d_w_h = recurrent_gradient(cell, trace, pulls.z if pulls.u is None else pulls.u, dtype)
    # An unused stack of d_states is dead code, which the compiler removes from the loop.
    d_probe = d_states if probed else None
    return d_w_h, pulls.vectors, pulls.first, pulls.z, None, d_probe, None


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


recur.defvjp(_recur_forward, _recur_backward)


def previous_read(trace: Trace) -> jax.Array:
    """What each step's product read: h_0 .. h_{T-1} [T, B, H], or r_0 .. r_{T-1} [T, B, R]."""
    if trace.read is not None:
        return trace.read
    h_prev = jnp.concatenate([trace.h_first[None], trace.h[:-1]])
    return h_prev if trace.state_mask is None else h_prev * trace.state_mask[None]


def recurrent_gradient(cell: Cell, trace: Trace, delta: jax.Array, dtype: Any = None) -> jax.Array:
    """dL/dW_h = sum over t of h_{t-1}^T delta_t, as one product. delta [T, B, K] -> as W_h."""
    read = previous_read(trace)
    rows = read.reshape(-1, read.shape[-1]), delta.reshape(-1, delta.shape[-1])
    return gather(cell, dot(*rows, dtype, TRANSPOSED_LEFT))


def unroll_step(
    step: Step,
    params: Any,
    state: Any,
    x: jax.Array,
    mask: jax.Array | None = None,
    probe: Any = None,
) -> tuple[Any, jax.Array]:
    """The generic door: any `step(params, state, x_t) -> (state, h_t)`, by plain autodiff.

    Slower than `unroll`, for cells that are not one product followed by elementwise gates.

    Args:
      state: any pytree of arrays with leading [B].
      x: [T, B, D].
      mask: bool [T, B] or None. On padding the state passes through and h_t is 0.
      probe: a pytree like `state` with leading [T, B], zeros; added to each state as it
        enters step t + 1, so that its gradient is dL/ds_t without the path through h_t, which
        a step of unknown form has put out already.

    Returns:
      (s_T, h [T, B, H]).
    """

    def scan_step(s_prev: Any, inputs: Any) -> tuple[Any, jax.Array]:
        x_t, mask_t, probe_t = inputs
        s_t, h_t = step(params, s_prev, x_t)
        s_t = select(mask_t, s_t, s_prev)
        if probe_t is not None:
            s_t = jax.tree.map(jnp.add, s_t, probe_t)
        return s_t, select(mask_t, h_t, jnp.zeros_like(h_t))

    return lax.scan(scan_step, state, (x, mask, probe))


def as_step(cell: Cell) -> Step:
    """A cell as a plain `step(params, state, x_t)`, what `unroll` must agree with."""

    def step(params: CellParams, s_prev: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        z_t = add_bias(x_t @ params.w_x, params.b)
        s_t = cell.gate(params.vectors, s_prev, z_t, recurrent_product(cell, s_prev, params.w_h))
        return s_t, s_t.h

    return step


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


def check_shapes(
    cell: Cell, params: CellParams, state: Any, x: jax.Array, mask: jax.Array | None
) -> None:
    """Raise ValueError where the arguments of `unroll` do not fit each other."""
    size, width = params.w_x.shape
    hidden = params.w_h.shape[0]
    if x.ndim != 3 or x.shape[-1] != size:
        raise ValueError(
            f"x has shape {x.shape}; wanted [T, B, {size}] to fit w_x {params.w_x.shape}"
        )
    gates, recurrent = len(cell.gates), cell.recurrent_gates
    if width != gates * hidden or params.w_h.shape != (hidden, recurrent * hidden):
        raise ValueError(
            f"w_x {params.w_x.shape} and w_h {params.w_h.shape} do not fit a {cell.name}; "
            f"wanted [D, {gates} H] and [H, {f'{recurrent} H' if recurrent else 0}]"
        )
    if params.b.shape != (cell.biased_gates * hidden,):
        wanted = (cell.biased_gates * hidden,)
        raise ValueError(f"b has shape {params.b.shape}; wanted {wanted} for a {cell.name}")
    if state.h.shape != (x.shape[1], hidden):
        raise ValueError(f"state.h has shape {state.h.shape}; wanted {(x.shape[1], hidden)}")
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != jnp.bool_):
        raise ValueError(
            f"mask is {mask.dtype} {mask.shape}; wanted bool {x.shape[:2]}, one entry a token"
        )
