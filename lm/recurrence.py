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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.alignment import align_layer, narrow, widen
from lm.cells.cell import Cell, CellParams, Tape, Vectors
from lm.cells.feedback import gather, recurrent_product
from lm.linear_recurrence import run_diagonal
from lm.log_space import log_norm
from lm.native import loop
from lm.native.calls import serves
from lm.native.loop import Cotangents, find_loop
from lm.products import TRANSPOSED_LEFT, add_bias, affine, dot
from lm.scans import Trace, previous_read, scan_backward, scan_forward, scan_states, select

Step = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]


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
    if compiled is None or z.shape[-1] != w_h.shape[-1]:
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
    if dtype is not None or jax.tree.leaves(masks) or not serves(sequence):
        return None
    return find_loop(cell, w_h, vectors, state, sequence.shape[:2])


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
    compiled = whole_loop(cell, w_h, vectors, state, z, (mask, state_mask), dtype)
    if compiled is None or z.shape[-1] != w_h.shape[-1]:
        return scan_states(cell, w_h, vectors, state, z, mask, state_mask, dtype)
    return loop.run(compiled, partial(scan_states, cell), w_h, vectors, state, z)


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
        sent, d_states = scan_backward(cell, w_h, vectors, trace, d_h, d_last, dtype)
    else:
        sent = loop.pull_back(compiled, scan, w_h, vectors, trace.tape, d_h, d_last)
    d_w_h = recurrent_gradient(cell, trace, sent.z if sent.u is None else sent.u, dtype)
    # An unused stack of d_states is dead code, which the compiler removes from the loop.
    d_probe = d_states if probed else None
    return d_w_h, sent.vectors, sent.first, sent.z, None, d_probe, None


recur.defvjp(_recur_forward, _recur_backward)


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
