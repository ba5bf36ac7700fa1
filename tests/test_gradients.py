"""The laboratory against exact laws, explicit Jacobians and plain autodiff."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from cell_names import EVERY_CELL
from test_cells import random_layer

from lm import model
from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params, make_cell
from lm.cells.rnn import RNNState
from lm.config import ModelConfig
from lm.gradients import flow
from lm.gradients.statistics import (
    E_FOLD,
    FLOAT32_EPSILON,
    horizon,
    seed_band,
    slope_per_step,
)
from lm.log_space import common_scale, log_norm
from lm.recurrence import as_step

measure_layer_lags = jax.jit(flow.measure_layer_lags, static_argnums=0)
measure_lags = jax.jit(flow.measure_lags, static_argnums=0)
measure_lengths = jax.jit(flow.measure_lengths, static_argnums=(0, 5))

LINEAR = make_cell("linear RNN", ("h",), RNNState, lambda vectors, state, z, u: RNNState(z + u))


def linear_curve(rho, time, dtype):
    """Lag curve of h_t = x_t + rho h_{t-1} Q."""
    hidden = 16
    q = jax.random.orthogonal(jax.random.key(0), hidden, dtype=dtype)
    params = CellParams(
        jnp.eye(hidden, dtype=dtype), jnp.asarray(rho, dtype) * q, jnp.zeros(hidden, dtype), ()
    )
    rng = np.random.default_rng(1)
    x = rng.normal(size=(time, 2, hidden)).astype(dtype)
    d_h = rng.normal(size=(2, hidden)).astype(dtype)
    curves = measure_layer_lags(LINEAR, params, LINEAR.init_state(2, hidden, dtype), x, d_h)
    return np.asarray(curves.h), np.log(np.linalg.norm(d_h, axis=-1))


@pytest.mark.parametrize("rho", [0.01, 0.5, 1.0, 3.0])
def test_scaled_rotation_gives_rho_to_the_lag(rho, x64):
    """To 10^-800 and 10^190: far beyond what float64 itself can hold."""
    log, first = linear_curve(rho, 401, jnp.float64)
    expected = first[None] + np.arange(401)[:, None] * np.log(rho)
    np.testing.assert_allclose(log, expected, rtol=2e-14, atol=1e-12)


@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0])
def test_scaled_rotation_in_float32(rho):
    """float32 keeps a norm of 10^-800 to 1e-4 nats a step, where a naive norm ends at 10^-23."""
    log, first = linear_curve(rho, 401, jnp.float32)
    expected = first[None] + np.arange(401)[:, None] * np.log(rho)
    np.testing.assert_allclose(log, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0, 3.0, 100.0])
def test_forced_gates_give_the_carousel(bias, x64):
    """W = U = 0: dc_T/dc_t is sigmoid(b_f)^lag exactly."""
    cell, hidden, time = CELLS["lstm"], 5, 60
    zero = jax.tree.map(
        jnp.zeros_like, init_params(jax.random.key(0), cell, 3, hidden, dtype=jnp.float64)
    )
    params = zero._replace(b=zero.b.at[hidden : 2 * hidden].set(bias))
    x = jnp.ones((time, 1, 3))
    state = cell.state(jnp.ones((1, hidden)), jnp.zeros((1, hidden)))
    c = np.asarray(measure_layer_lags(cell, params, state, x, jnp.ones((1, hidden))).c)[:, 0]
    expected = (np.arange(1, time) - 1) * -np.log1p(np.exp(-bias))
    np.testing.assert_allclose(c[1:] - c[1], expected, rtol=1e-13, atol=1e-13)
    assert c[0] == -np.inf  # at lag 0 nothing has come through the carry yet


@pytest.mark.parametrize("name", EVERY_CELL)
def test_curves_equal_explicit_jacobian_products(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    hidden = state.h.shape[1]
    d_h = np.random.default_rng(3).normal(size=state.h.shape)
    curves = jax.tree.map(np.asarray, measure_layer_lags(cell, params, state, x, d_h))
    x = np.asarray(x)
    row_state = jax.tree.map(lambda s: s[:1], state)
    flat, unflatten = jax.flatten_util.ravel_pytree(row_state)  # h is the last field

    @jax.jit
    def step(s, x_t):
        new = as_step(cell)(params, unflatten(s), x_t[None])[0]
        return jax.flatten_util.ravel_pytree(new)[0]

    states = [flat]
    for t in range(len(x)):
        states.append(step(states[-1], x[t, 0]))
    jacobian = jax.jit(jax.jacobian(step))
    d = np.concatenate([np.zeros(len(flat) - hidden), d_h[0]])
    for lag in range(len(x)):
        np.testing.assert_allclose(
            curves.state[lag, 0], np.log(np.linalg.norm(d)), rtol=1e-12, atol=1e-13
        )
        np.testing.assert_allclose(
            curves.h[lag, 0], np.log(np.linalg.norm(d[-hidden:])), rtol=1e-12, atol=1e-13
        )
        t = len(x) - 1 - lag
        d = d @ np.asarray(jacobian(states[t], x[t, 0]))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", EVERY_CELL)
def test_model_measures_equal_plain_autodiff(name, layers, x64):
    """Both measures of a stack, against jax.grad of each row's own loss at each length."""
    config = ModelConfig(cell=name, layers=layers, hidden_size=5, embedding_size=4)
    params = model.init(jax.random.key(0), config, 11, dtype=jnp.float64)
    tokens, targets = np.random.default_rng(1).integers(0, 11, (2, 9, 2)).astype(np.int32)
    carry = model.init_carry(config, 2, jnp.float64)
    cell = CELLS[name]
    probes = tuple(
        cell.state(*(np.zeros((9, 1, 5)) for _ in cell.state._fields)) for _ in range(layers)
    )

    def loss(params, probes, tokens, targets, last):
        h = params.embedding[tokens][:, None]
        for layer, probe in zip(params.layers, probes, strict=True):
            h = probed_outputs(cell, layer, cell.init_state(1, 5, jnp.float64), h, probe)
        scores = model.logits(params, h[last])[0]
        return jax.nn.logsumexp(scores) - scores[targets[last]]

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    lengths = (1, 2, 5, 9)
    by_length = measure_lengths(config, params, carry, tokens, targets, lengths)
    lags = measure_lags(config, params, carry, tokens, targets[-1])
    by_length, lags = jax.tree.map(np.asarray, (by_length, lags))
    for row in range(2):
        for k, length in enumerate(lengths):
            found = grad(params, probes, tokens[:, row], targets[:, row], length - 1)
            grads, d_probes = jax.tree.map(np.asarray, found)
            for depth in range(layers):
                norm = np.linalg.norm(grads.layers[depth].w_h)
                if length == 1:
                    assert norm == 0
                    assert by_length[depth][k, row] == -np.inf
                elif norm == 0:  # rectifiers that are all off
                    assert by_length[depth][k, row] == -np.inf
                else:
                    np.testing.assert_allclose(by_length[depth][k, row], np.log(norm), rtol=1e-9)
        for depth in range(layers):
            norms = np.linalg.norm(d_probes[depth].h[::-1, 0], axis=-1)
            np.testing.assert_allclose(np.exp(lags[depth].h[:, row]), norms, rtol=1e-9)


def probed_outputs(cell, layer, state, x, probe):
    """h_1 .. h_T of a plain scan, each state with its probe added before it is put out."""

    def step(s, inputs):
        s, _ = as_step(cell)(layer, s, inputs[0])
        s = jax.tree.map(jnp.add, s, inputs[1])
        return s, s.h

    return jax.lax.scan(step, state, (x, probe))[1]


def test_lengths_outside_the_text_are_refused():
    config = ModelConfig(hidden_size=4, embedding_size=4)
    params = model.init(jax.random.key(0), config, 5)
    tokens = jnp.zeros((3, 1), jnp.int32)
    with pytest.raises(ValueError, match="from 1 to 3"):
        measure_lengths(config, params, model.init_carry(config, 1), tokens, tokens, (2, 4))


def test_log_norm_far_outside_the_range_of_a_square():
    x = jnp.full((4, 128), jnp.asarray([1e-30, 1e30, 0.0, 1.0])[:, None])
    assert float(jnp.linalg.norm(x[0])) == 0  # the trap
    expected = np.log([1e-30, 1e30, 1, 1]) + np.log(128) / 2
    got = np.asarray(log_norm(x))
    np.testing.assert_allclose(got[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-6)
    assert got[2] == -np.inf


def test_common_scale_of_nothing_is_nothing():
    nothing = jnp.asarray([-jnp.inf, -jnp.inf, 2.0])
    larger, keep, add = common_scale(nothing, jnp.asarray([-jnp.inf, 1.0, 3.0]))
    np.testing.assert_array_equal(larger, [-np.inf, 1, 3])
    np.testing.assert_allclose(keep, [0, 0, np.exp(-1)], rtol=1e-6)
    np.testing.assert_allclose(add, [0, 1, 1])


@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
def test_horizon_and_slope_of_an_exponential(rho):
    curve = np.arange(3000) * np.log(rho)
    assert slope_per_step(curve) == pytest.approx(np.log(rho))
    assert horizon(curve, E_FOLD) == pytest.approx(-1 / np.log(rho))
    assert horizon(curve, FLOAT32_EPSILON) == pytest.approx(FLOAT32_EPSILON / np.log(rho))
    assert horizon(curve[:3], -1e9) == np.inf


def test_slope_stops_where_the_gradient_is_dead():
    curve = np.asarray([0.0, -1, -2, -3, -np.inf, -np.inf])
    assert slope_per_step(curve) == pytest.approx(-1)
    assert np.isnan(slope_per_step(curve[:1]))
    assert horizon(curve[3:], E_FOLD) == 0
    assert np.isnan(horizon(np.full(9, np.nan), E_FOLD))
    assert horizon(curve, -5) == 3


def test_the_t_interval_covers_95_percent():
    draws = np.random.default_rng(0).normal(2.0, 3.0, (5, 20_000))
    mean, low, high = seed_band(draws)
    assert np.mean((low < 2) & (high > 2)) == pytest.approx(0.95, abs=0.006)
    np.testing.assert_allclose(mean, draws.mean(0))
    assert np.isnan(seed_band(draws[:1]).low).all()


@pytest.mark.parametrize(
    ("name", "forget_bias", "slope", "tolerance"),
    [
        ("rnn", 0, -0.463, 0.015),
        ("lstm", 0, -0.445, 0.015),
        ("lstm", 1, -0.190, 0.01),
        ("lstm", 3, -0.004, 0.003),
    ],
)
def test_slopes_at_initialisation(name, forget_bias, slope, tolerance):
    """Numbers of an independent prototype: x ~ N(0, 1), H = 64, 16 seeds."""
    cell, hidden, time = CELLS[name], 64, 201

    def curve(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        params = init_params(keys[0], cell, hidden, hidden, forget_bias=forget_bias)
        x = jax.random.normal(keys[1], (time, 1, hidden))
        d_h = jax.random.normal(keys[2], (1, hidden))
        return measure_layer_lags(cell, params, cell.init_state(1, hidden), x, d_h).state[:, 0]

    log = np.asarray(jax.jit(jax.vmap(curve))(jnp.arange(16)))
    assert slope_per_step(log.mean(axis=0)) == pytest.approx(slope, abs=tolerance)
