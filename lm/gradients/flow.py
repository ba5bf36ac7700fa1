"""Gradient flow through time: dL_T/ds_t at every lag T - t, from one backward pass.

The backward scan is training's own (`lm.scans.pull_back_step`), carried in log space:
(log scale, direction) in place of a cotangent, so that float32 follows a norm to 1e-100 and
beyond, where its own range ends at 1e-45 and a naive norm at 1e-23.

Source: Hochreiter 1991; Pascanu, Mikolov, Bengio 2013 (arXiv:1211.5063), equations 3 to 5.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm import model
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams
from lm.cells.feedback import gather
from lm.config import ModelConfig
from lm.linalg import full_precision
from lm.log_space import Scaled, common_scale, log_norm, rescale
from lm.recurrence import project, run_forward
from lm.scans import Trace, previous_read, pull_back_step, transposed_weights

LANE_BYTES = 512 * 2**20  # most memory for the backward passes that `measure_lengths` runs at once


class Flow(NamedTuple):
    """What a loss sends back through one layer. Norms are natural logs of L2 norms."""

    log_norms: Any  # the cell's state: log ||dL/ds_t|| a field, [T, B], t = 1 .. T
    log_norm_state: jax.Array  # of all fields jointly [T, B]
    log_norm_carousel: jax.Array | None  # of the cell state in total, through h_t too [T, B]
    delta: Scaled  # dL/du_t [T, B, K]
    d_x: Scaled  # dL/dx_t [T, B, D]


class LagCurves(NamedTuple):
    """log ||dL_T/ds_{T - lag}|| against lag, natural log of an L2 norm, each [lags, B].

    The fields of a state share one scale: one that lies further below the joint norm than its
    type can hold (87 nats in float32) reads -inf.

    An LSTM's c has two. `c` is the carry alone: h_{T - lag} is a field of its own, and the path
    from c through it counts there; at lag 0 it is exactly 0. `c_total` counts that path too: it
    is what a probe added to c before h = o tanh(c) is taken would see.
    """

    h: jax.Array
    state: jax.Array  # all fields of the state jointly; equals h where h is all there is
    c: jax.Array | None  # LSTM
    c_total: jax.Array | None  # of cells that know `Cell.d_carousel`


@full_precision
def pull_back_log(cell: Cell, params: CellParams, trace: Trace, injected: Scaled) -> Flow:
    """Run cotangents of the outputs back through one layer, in log space.

    Args:
      injected: dL/dh_t from above at every t, log [T, B] and unit [T, B, H];
        log = -inf where nothing comes in.
    """
    w_transposed = transposed_weights(cell, params.w_h, trace.h.shape[:2])
    batch, hidden = trace.h_first.shape
    zero = cell.init_state(batch, hidden, trace.h.dtype)
    nothing = jnp.full(batch, -jnp.inf, trace.h.dtype)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        log, d_s = carry
        log_in, unit_in, tape_t, mask_t = inputs
        log, keep, add = common_scale(log, log_in)
        d_s = jax.tree.map(lambda leaf: leaf * keep[:, None], d_s)
        d_s = d_s._replace(h=d_s.h + unit_in * add[:, None])
        norms = jax.tree.map(lambda leaf: log + log_norm(leaf), d_s)
        joint = log + log_norm(jnp.concatenate(jax.tree.leaves(d_s), axis=-1))
        total = None if cell.d_carousel is None else log + log_norm(cell.d_carousel(tape_t, d_s))
        d_prev, pulled = pull_back_step(cell, w_transposed, tape_t, mask_t, d_s)
        return rescale(log, d_prev), (norms, joint, total, log, pulled.z, pulled.u)

    _, (norms, joint, total, log, d_z, delta) = lax.scan(
        step, (nothing, zero), (injected.log, injected.unit, trace.tape, trace.mask), reverse=True
    )
    d_x = (d_z.reshape(-1, d_z.shape[-1]) @ params.w_x.T).reshape(*d_z.shape[:2], -1)
    return Flow(norms, joint, total, Scaled(log, delta), Scaled(log, d_x))


def inject_at(time: int, step: jax.Array | int, d_h: jax.Array) -> Scaled:
    """dL/dh [B, H] arriving at one step (0-based) of `time`, and nothing elsewhere."""
    log = log_norm(d_h)
    unit = d_h * jnp.exp(-jnp.where(jnp.isneginf(log), 0, log))[:, None]
    here = jnp.arange(time) == step
    return Scaled(
        jnp.where(here[:, None], log[None], -jnp.inf),
        jnp.where(here[:, None, None], unit[None], 0),
    )


@full_precision
def measure_layer_lags(
    cell: Cell, params: CellParams, state: Any, x: jax.Array, d_h: jax.Array
) -> LagCurves:
    """Lag curves of one layer, for a loss at the last step with gradient d_h = dL_T/dh_T.

    Args:
      state: s_0, fields [B, H].
      x: [T, B, D].
      d_h: [B, H].

    Returns:
      LagCurves with lags 0 .. T - 1.
    """
    _, trace = run_forward(
        cell, params.w_h, params.vectors, state, project(x, params.w_x, params.b), None
    )
    flow = pull_back_log(cell, params, trace, inject_at(x.shape[0], x.shape[0] - 1, d_h))
    return lag_curves(flow)


def lag_curves(flow: Flow) -> LagCurves:
    """A Flow whose loss is at the last step, ordered by lag."""
    norms = flow.log_norms
    return LagCurves(
        h=norms.h[::-1],
        state=flow.log_norm_state[::-1],
        c=norms.c[::-1] if hasattr(norms, "c") else None,
        c_total=None if flow.log_norm_carousel is None else flow.log_norm_carousel[::-1],
    )


class ForwardPass(NamedTuple):
    """A language model run over a text, with every layer's tape."""

    traces: tuple[Trace, ...]
    h: jax.Array  # of the last layer [T, B, H]


@full_precision
def run_model(
    config: ModelConfig, params: model.Params, carry: model.Carry, tokens: jax.Array
) -> ForwardPass:
    """Forward pass of a language model that keeps the tapes. tokens int [T, B]."""
    cell = CELLS[config.cell]
    h = jnp.take(params.embedding, tokens, axis=0)
    traces = []
    for layer, state in zip(params.layers, carry, strict=True):
        z = project(h, layer.w_x, layer.b)
        _, trace = run_forward(cell, layer.w_h, layer.vectors, state, z, None)
        traces.append(trace)
        h = trace.h
    return ForwardPass(tuple(traces), h)


@full_precision
def loss_gradient(params: model.Params, h: jax.Array, targets: jax.Array) -> jax.Array:
    """dL/dh of the cross-entropy of each row's own target. h [B, H], targets [B] -> [B, H]."""
    scores, pull_back = jax.vjp(lambda h: model.logits(params, h), h)
    onehot = jax.nn.one_hot(targets, scores.shape[-1], dtype=scores.dtype)
    d_h: jax.Array = pull_back(jax.nn.softmax(scores, axis=-1) - onehot)[0]
    return d_h


def pull_back_model(
    config: ModelConfig, params: model.Params, forward: ForwardPass, injected: Scaled
) -> tuple[Flow, ...]:
    """Cotangents of the last layer's outputs, run back through the stack: a Flow a layer."""
    cell = CELLS[config.cell]
    flows = []
    for layer, trace in zip(reversed(params.layers), reversed(forward.traces), strict=True):
        flow = pull_back_log(cell, layer, trace, injected)
        flows.append(flow)
        injected = flow.d_x
    return tuple(reversed(flows))


@full_precision
def measure_lags(
    config: ModelConfig,
    params: model.Params,
    carry: model.Carry,
    tokens: jax.Array,
    targets: jax.Array,
) -> tuple[LagCurves, ...]:
    """How much of the last word's loss reaches each earlier step: measure 1, a layer each.

    One forward and one backward pass serve all lags.

    Args:
      carry: state before the first token, a layer each.
      tokens: int [T, B].
      targets: int [B], the word after the last one.

    Returns:
      LagCurves of each layer, lags 0 .. T - 1, per row.
    """
    forward = run_model(config, params, carry, tokens)
    d_h = loss_gradient(params, forward.h[-1], targets)
    time = tokens.shape[0]
    flows = pull_back_model(config, params, forward, inject_at(time, time - 1, d_h))
    return tuple(lag_curves(flow) for flow in flows)


@full_precision
def measure_lengths(
    config: ModelConfig,
    params: model.Params,
    carry: model.Carry,
    tokens: jax.Array,
    targets: jax.Array,
    lengths: tuple[int, ...],
) -> tuple[jax.Array, ...]:
    """log ||dL_T/dW_h|| against sequence length T: measure 5, a layer each.

    The sequences are the prefixes of `tokens`, so one forward pass serves all lengths; each
    length is a lane of the backward scan, as many at once as fit LANE_BYTES. T = 1 gives -inf,
    exactly 0, from the zero state.

    Args:
      tokens: int [T, B].
      targets: int [T, B], the word after each token.
      lengths: each from 1 to T.

    Returns:
      natural log of the Frobenius norm of each row's own gradient, [lengths, B], a layer each.

    Raises:
      ValueError: a length outside 1 .. T.
    """
    time, cell = tokens.shape[0], CELLS[config.cell]
    check_lengths(lengths, time)
    forward = run_model(config, params, carry, tokens)

    def one_length(length: jax.Array) -> tuple[jax.Array, ...]:
        h = lax.dynamic_index_in_dim(forward.h, length - 1, keepdims=False)
        target = lax.dynamic_index_in_dim(targets, length - 1, keepdims=False)
        injected = inject_at(time, length - 1, loss_gradient(params, h, target))
        flows = pull_back_model(config, params, forward, injected)
        return tuple(
            recurrent_log_norm(cell, trace, flow.delta)
            for trace, flow in zip(forward.traces, flows, strict=True)
        )

    width = max(layer.w_x.shape[1] for layer in params.layers)
    return map_lengths(one_length, lengths, 3 * tokens.size * width, params.embedding.dtype)


@full_precision
def measure_layer_lengths(
    cell: Cell,
    params: CellParams,
    state: Any,
    x: jax.Array,
    d_h: jax.Array,
    lengths: tuple[int, ...],
) -> jax.Array:
    """Measure 5 of one layer: log ||dL_T/dW_h||_F of each row against T, prefixes of x.

    Args:
      state: s_0, fields [B, H].
      x: [T, B, D].
      d_h: dL_T/dh_T at each length, [lengths, B, H].
      lengths: each from 1 to T.

    Returns:
      nats, [lengths, B].

    Raises:
      ValueError: a length outside 1 .. T.
    """
    time = x.shape[0]
    check_lengths(lengths, time)
    z = project(x, params.w_x, params.b)
    _, trace = run_forward(cell, params.w_h, params.vectors, state, z, None)

    def one_length(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        length, d_last = one
        flow = pull_back_log(cell, params, trace, inject_at(time, length - 1, d_last))
        return recurrent_log_norm(cell, trace, flow.delta)

    found: jax.Array = map_lengths(one_length, lengths, 3 * z.size, x.dtype, d_h)
    return found


def check_lengths(lengths: tuple[int, ...], time: int) -> None:
    """Raise ValueError for a length that the text does not hold."""
    if not lengths or min(lengths) < 1 or max(lengths) > time:
        raise ValueError(f"lengths are {lengths}; wanted each from 1 to {time}, the tokens given")


def map_lengths(
    one_length: Any, lengths: tuple[int, ...], numbers: int, dtype: Any, *more: jax.Array
) -> Any:
    """`one_length` of every length, as many lanes at once as fit LANE_BYTES.

    Args:
      numbers: that one lane holds at once.
      more: further arguments, [lengths, ...]; `one_length` then takes a tuple.
    """
    lanes = max(1, LANE_BYTES // (numbers * jnp.dtype(dtype).itemsize))
    at = jnp.asarray(lengths)
    return lax.map(one_length, (at, *more) if more else at, batch_size=min(len(lengths), lanes))


@full_precision
def recurrent_log_norm(cell: Cell, trace: Trace, delta: Scaled) -> jax.Array:
    """log ||sum over t of h_{t-1}^T delta_t||_F of each row, in nats. [B]."""
    # One scale a row: the largest. What underflows beside it does not count in the sum.
    largest = jnp.max(delta.log, axis=0)
    finite = jnp.where(jnp.isneginf(largest), 0, largest)
    scaled = delta.unit * jnp.exp(delta.log - finite[None])[..., None]
    gradient = gather(cell, jnp.einsum("tbr,tbk->brk", previous_read(trace), scaled))
    return largest + log_norm(gradient.reshape(gradient.shape[0], -1))
