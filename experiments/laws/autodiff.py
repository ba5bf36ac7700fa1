"""Nonlinear networks: explicit Jacobians, their bounds, and plain autodiff.

The references differentiate a scan over the cell's own step; the engine's backward pass, which
the measures look at, has no part in them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.laws.error import (
    Found,
    absolute_error,
    float64,
    log_error,
    relative_error,
    tolerance,
    worst,
)
from experiments.laws.layer import (
    Layer,
    compiled_exponents,
    compiled_jacobians,
    compiled_lags,
    compiled_lengths,
    compiled_norms,
    compiled_states,
    make_layer,
    rotation,
    run_layer,
)
from lm.cells.cell import Cell, make_cell
from lm.cells.lstm import LSTM
from lm.cells.rnn import TANH_RNN, RNNState
from lm.gradients.components import lag_shares, measure_truncation, temporal_gram, total_log_norm
from lm.gradients.flow import inject_at
from lm.gradients.jacobian import (
    pascanu_bound,
    slope_bound,
)
from lm.gradients.paths import measure_paths
from lm.gradients.statistics import slope_per_step
from lm.recurrence import as_step

SIGMOID = make_cell(
    "sigmoid RNN", ("h",), RNNState, lambda vectors, state, z, u: RNNState(jax.nn.sigmoid(z + u))
)


def jacobian_products(dtype: str) -> Found:
    """Tanh RNN and LSTM: dL_T/dh_T times J_T ... J_{t+1}, multiplied out in NumPy."""
    errors = []
    for cell in (TANH_RNN, LSTM):
        layer = make_layer(cell, dtype, 60)
        curves = compiled_lags(cell, *layer)
        jacobians = float64(compiled_jacobians(cell, *layer[:3]))[:, 0]
        hidden = layer.d_h.shape[1]
        d = np.zeros(jacobians.shape[-1])
        d[-hidden:] = layer.d_h[0]  # h is the last field
        walked = [d]
        for j_t in jacobians[:0:-1]:
            walked.append(walked[-1] @ j_t)
        rows = np.stack(walked)
        parts = {"state": rows, "h": rows[:, -hidden:]}
        if curves.c is not None:
            parts["c"] = rows[:, :hidden]
        for field, part in parts.items():
            with np.errstate(divide="ignore"):
                expected = np.log(np.linalg.norm(part, axis=1))
            errors.append(log_error(getattr(curves, field)[:, 0], expected))
    return worst(*errors), tolerance(dtype, 1e-12, 2e-4)


def norm_bounds(dtype: str) -> Found:
    """By how much the norm passes the tighter bound, or that one Pascanu's: not at all."""
    excess = [0.0]
    lags = jnp.arange(61, dtype=dtype)
    for cell, gamma in ((TANH_RNN, 1.0), (SIGMOID, 0.25)):
        layer = make_layer(cell, dtype, 60)
        w_h = 1.3 * layer.params.w_h
        driven = layer.params._replace(w_h=w_h), layer.state, layer.x
        h = compiled_states(cell, *driven).h[1:]
        slopes = h * (1 - h) if cell is SIGMOID else 1 - h**2
        spectral = float64(compiled_norms(compiled_jacobians(cell, *driven)).spectral)
        tighter = float64(jax.jit(slope_bound)(w_h, slopes))
        loose = float64(jax.jit(pascanu_bound)(w_h, lags, gamma))[:, None]
        excess += [float(np.max(spectral - tighter)), float(np.max(tighter - loose))]
    return worst(*excess), tolerance(dtype, 1e-12, 1e-4)


def mean_square(dtype: str) -> Found:
    """An orthonormal basis of loss gradients, a row each, on one and the same input."""
    cell, hidden, time = TANH_RNN, 4, 60
    layer = make_layer(cell, dtype, time, hidden=hidden)
    frobenius = compiled_norms(compiled_jacobians(cell, *layer[:3])).frobenius[:time, 0]
    rows = jax.tree.map(lambda s: jnp.broadcast_to(s, (hidden, hidden)), layer.state)
    x = jnp.broadcast_to(layer.x, (time, hidden, hidden))
    basis = jnp.asarray(rotation(np.random.default_rng(1), hidden, hidden), dtype)
    curves = compiled_lags(cell, layer.params, rows, x, basis)
    mean = np.log(np.mean(np.exp(2 * float64(curves.h)), axis=1)) / 2
    error = log_error(mean, float64(frobenius) - np.log(hidden) / 2)
    return error, tolerance(dtype, 1e-12, 1e-4)


@partial(jax.jit, static_argnums=0)
def untied_gradients(cell: Cell, layer: Layer) -> jax.Array:
    """Plain autodiff: the gradient of every step's own copy of W_h, [T, H, K]."""

    def loss(copies: jax.Array) -> jax.Array:
        def step(s: Any, inputs: Any) -> tuple[Any, None]:
            w_h, x_t = inputs
            return as_step(cell)(layer.params._replace(w_h=w_h), s, x_t)[0], None

        last, _ = lax.scan(step, layer.state, (copies, layer.x))
        return jnp.vdot(last.h, layer.d_h)

    w_h = layer.params.w_h
    return jax.grad(loss)(jnp.broadcast_to(w_h, (len(layer.x), *w_h.shape)))


@partial(jax.jit, static_argnums=0)
def compiled_gram(cell: Cell, layer: Layer) -> Any:
    trace, flow = run_layer(cell, layer)
    gram = temporal_gram(cell, trace, flow.delta)
    return gram, total_log_norm(gram), lag_shares(gram), measure_truncation(gram)


def untied_copies(dtype: str) -> Found:
    """Norms and cosines of the Gram matrix."""
    layer = make_layer(LSTM, dtype, 25, batch=2)
    copies = float64(untied_gradients(LSTM, layer)).reshape(25, -1)
    gram = compiled_gram(LSTM, layer)[0]
    log, norms = float64(gram.log), np.linalg.norm(copies, axis=1)
    error = worst(
        relative_error(np.exp(log) / norms, np.ones(25)),
        absolute_error(gram.cosine, copies @ copies.T / np.outer(norms, norms)),
    )
    return error, tolerance(dtype, 1e-13, 2e-5)


def component_sum(dtype: str) -> Found:
    """The norm of the whole gradient, the shares by lag, and their sum."""
    layer = make_layer(LSTM, dtype, 25, batch=2)
    copies = float64(untied_gradients(LSTM, layer)).reshape(25, -1)
    whole = copies.sum(axis=0)
    _, log, shares, _ = compiled_gram(LSTM, layer)
    error = worst(
        relative_error(np.exp(float64(log)), np.linalg.norm(whole)),
        absolute_error(shares, (copies @ whole / (whole @ whole))[::-1]),
        absolute_error(float64(shares).sum(), 1),
    )
    return error, tolerance(dtype, 1e-13, 2e-5)


def separate_lengths(dtype: str) -> Found:
    """An LSTM from h_0 = 0, a gradient of its own for every length."""
    lengths = (1, 2, 5, 20, 100, 400)
    layer = make_layer(LSTM, dtype, lengths[-1])
    zero = jax.tree.map(jnp.zeros_like, layer.state)

    @jax.jit
    def separate(layer: Layer) -> jax.Array:
        def loss(w_h: jax.Array, length: jax.Array) -> jax.Array:
            tied = layer.params._replace(w_h=w_h)
            _, h = lax.scan(partial(as_step(LSTM), tied), layer.state, layer.x)
            return jnp.vdot(lax.dynamic_index_in_dim(h, length - 1, keepdims=False), layer.d_h)

        return lax.map(partial(jax.grad(loss), layer.params.w_h), jnp.asarray(lengths))

    gradients = float64(separate(layer._replace(state=zero))).reshape(len(lengths), -1)
    d_h = jnp.broadcast_to(layer.d_h, (len(lengths), *layer.d_h.shape))
    found = float64(compiled_lengths(LSTM, layer.params, zero, layer.x, d_h, lengths=lengths))[:, 0]
    error = log_error(found[1:], np.log(np.linalg.norm(gradients[1:], axis=1)))
    return error if found[0] == -np.inf else np.inf, tolerance(dtype, 1e-12, 1e-4)


def log_determinant(dtype: str) -> Found:
    """All exponents of an LSTM's joint state (c and h) together."""
    layer = make_layer(LSTM, dtype, 2000, hidden=8)
    found = float64(compiled_exponents(LSTM, *layer[:3]))
    jacobians = compiled_jacobians(LSTM, *layer[:3])
    logs = np.linalg.slogdet(float64(jacobians))[1].mean(axis=0)
    return log_error(found.sum(axis=1), logs), tolerance(dtype, 1e-12, 2e-4)


def largest_exponent(dtype: str) -> Found:
    """Forward mode against reverse mode, on the joint state; equal in the limit of long times."""
    layer = make_layer(LSTM, dtype, 2000, hidden=8)
    curve = float64(compiled_lags(LSTM, *layer).state)[:, 0]
    return log_error(compiled_exponents(LSTM, *layer[:3])[0, 0], slope_per_step(curve)), 0.01


def stopped_gradients(dtype: str) -> Found:
    """Against autodiff that stops k steps before the loss, for every k."""
    time = 20
    layer = make_layer(LSTM, dtype, time, batch=2)

    @jax.jit
    def stopped(layer: Layer) -> jax.Array:
        def loss(w_h: jax.Array, k: jax.Array) -> jax.Array:
            tied = layer.params._replace(w_h=w_h)

            def step(s: Any, inputs: Any) -> tuple[Any, None]:
                t, x_t = inputs
                held = t == time - k
                s = jax.tree.map(lambda leaf: jnp.where(held, lax.stop_gradient(leaf), leaf), s)
                return as_step(LSTM)(tied, s, x_t)[0], None

            last, _ = lax.scan(step, layer.state, (jnp.arange(time), layer.x))
            return jnp.vdot(last.h, layer.d_h)

        return lax.map(partial(jax.grad(loss), layer.params.w_h), 1 + jnp.arange(time))

    gradients = float64(stopped(layer)).reshape(time, -1)
    norms = np.linalg.norm(gradients, axis=1)
    found = compiled_gram(LSTM, layer)[3]
    error = worst(
        absolute_error(found.cosine, gradients @ gradients[-1] / (norms * norms[-1])),
        absolute_error(np.exp(float64(found.log_ratio)), norms / norms[-1]),
    )
    return error, tolerance(dtype, 1e-13, 2e-5)


def path_sum(dtype: str) -> Found:
    """Vector by vector, against autodiff with a probe added to every state."""
    time = 40
    layer = make_layer(LSTM, dtype, time, batch=2)

    @jax.jit
    def whole(layer: Layer) -> Any:
        def loss(probes: Any) -> jax.Array:
            def step(s: Any, inputs: Any) -> tuple[Any, None]:
                x_t, probe_t = inputs
                s, _ = as_step(LSTM)(layer.params, s, x_t)
                return jax.tree.map(jnp.add, s, probe_t), None

            last, _ = lax.scan(step, layer.state, (layer.x, probes))
            return jnp.vdot(last.h, layer.d_h)

        zero = jax.tree.map(lambda s: jnp.zeros((time, *s.shape), s.dtype), layer.state)
        return jax.grad(loss)(zero)

    @jax.jit
    def parts(layer: Layer) -> Any:
        trace, _ = run_layer(LSTM, layer)
        return measure_paths(LSTM, layer.params, trace, inject_at(time, time - 1, layer.d_h))

    found = parts(layer)
    scales = [np.exp(float64(part.log))[..., None] for part in found]
    errors = []
    for field, gradient in whole(layer)._asdict().items():
        both = sum(
            scale * float64(getattr(part.unit, field))
            for scale, part in zip(scales, found, strict=True)
        )
        sizes = np.linalg.norm(float64(gradient), axis=-1)
        apart = np.linalg.norm(both - float64(gradient), axis=-1)
        errors.append(float(np.max(apart[sizes > 0] / sizes[sizes > 0])))
        errors.append(float(np.max(apart[sizes == 0], initial=0)))
    return worst(*errors), tolerance(dtype, 1e-12, 2e-4)
