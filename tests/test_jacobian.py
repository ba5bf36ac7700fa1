"""Jacobians, their products and Lyapunov exponents against exact laws and extended precision."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cell_names import EVERY_CELL
from test_cells import random_layer
from test_gradients import LINEAR

from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params
from lm.cells.rnn import RNNState
from lm.gradients import flow, jacobian, lyapunov
from lm.gradients.jacobian import pascanu_bound, slope_bound
from lm.gradients.statistics import slope_per_step
from lm.recurrence import as_step as new_step
from lm.recurrence import project, run_forward

as_step = cache(new_step)
measure_layer_lags = jax.jit(flow.measure_layer_lags, static_argnums=0)
state_jacobians = jax.jit(jacobian.state_jacobians, static_argnums=0)
run_states = jax.jit(jacobian.run_states, static_argnums=0)
product_log_norms = jax.jit(jacobian.product_log_norms)
log_singular_values = jax.jit(jacobian.log_singular_values)
singular_spectrum = jax.jit(jacobian.singular_spectrum)
lyapunov_spectrum = jax.jit(
    lyapunov.lyapunov_spectrum, static_argnums=0, static_argnames=("exponents", "warmup")
)


def linear_layer(w):
    """h_t = x_t + h_{t-1} W: the Jacobian is W^T at every step."""
    hidden = len(w)
    return CellParams(np.eye(hidden, dtype=w.dtype), w, np.zeros(hidden, w.dtype), ())


def tanh_layer(key, hidden, gain):
    params = init_params(key, CELLS["rnn"], hidden, hidden, dtype=jnp.float64)
    more = np.random.default_rng(2).normal(size=(hidden, hidden))
    return params._replace(w_h=params.w_h + gain * more)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_jacobians_equal_finite_differences(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    step = as_step(cell)
    jacobians = state_jacobians(step, params, state, x)
    states = run_states(step, params, state, x)
    t, row, small = 3, 1, 1e-6
    at = np.concatenate([np.asarray(leaf)[t, row] for leaf in states])
    fields = len(cell.state._fields)
    one_step = jax.jit(step)

    def advance(flat):
        parts = cell.state(*(part[None] for part in np.split(flat, fields)))
        return np.concatenate([leaf[0] for leaf in one_step(params, parts, x_t)[0]])

    x_t = np.asarray(x)[t, row][None]
    columns = [
        (advance(at + by) - advance(at - by)) / (2 * small) for by in small * np.eye(len(at))
    ]
    found = np.asarray(jacobians)[t, row]
    np.testing.assert_allclose(found, np.stack(columns, axis=1), atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-3)])
@pytest.mark.parametrize("rho", [0.01, 1.0, 3.0])
def test_norms_of_a_scaled_rotation(rho, dtype, tolerance, x64):
    """rho^lag, and sqrt(H) times it, over 1,000 lags: from 10^-2000 to 10^477."""
    q = jax.random.orthogonal(jax.random.key(0), 8, dtype=dtype)
    jacobians = np.broadcast_to(np.asarray(rho, dtype) * np.asarray(q), (1000, 8, 8))
    norms = product_log_norms(jacobians)
    expected = np.arange(1001) * np.log(rho)
    np.testing.assert_allclose(norms.spectral, expected, atol=tolerance, rtol=tolerance / 100)
    np.testing.assert_allclose(
        norms.frobenius, expected + np.log(8) / 2, atol=tolerance, rtol=tolerance / 100
    )


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0])
def test_no_product_passes_its_bounds(gain, x64):
    cell = CELLS["rnn"]
    params = tanh_layer(jax.random.key(2), 12, gain)
    x = np.random.default_rng(3).normal(size=(60, 2, 12))
    state = cell.init_state(2, 12, jnp.float64)
    norms = product_log_norms(state_jacobians(as_step(cell), params, state, x))

    @jax.jit
    def bounds(params):
        z = project(x, params.w_x, params.b)
        _, trace = run_forward(cell, params.w_h, params.vectors, state, z, None)
        loose = pascanu_bound(params.w_h, jnp.arange(61.0))[:, None]
        return slope_bound(params.w_h, trace.tape), loose

    norms, (tighter, loose) = jax.tree.map(np.asarray, (norms, bounds(params)))
    rounding = 1e-10
    assert np.all(norms.spectral <= tighter + rounding)
    assert np.all(tighter <= loose + rounding)
    assert np.all(norms.spectral <= norms.frobenius + rounding)
    assert np.all(norms.frobenius <= norms.spectral + np.log(12) / 2 + rounding)


@pytest.mark.parametrize("name", ["rnn", "gru"])
def test_mean_squared_gradient_is_the_frobenius_norm(name, x64):
    """The mean over an orthonormal basis of ||J^T v||^2 is ||J||_F^2 / H: measure 1 and 2 agree."""
    cell, hidden, time = CELLS[name], 6, 40
    params = init_params(jax.random.key(0), cell, hidden, hidden, dtype=jnp.float64)
    x = np.random.default_rng(1).normal(size=(time, 1, hidden))
    one = cell.init_state(1, hidden, jnp.float64)
    norms = product_log_norms(state_jacobians(as_step(cell), params, one, x))
    many = np.broadcast_to(x, (time, hidden, hidden))
    curves = measure_layer_lags(
        cell, params, cell.init_state(hidden, hidden, jnp.float64), many, np.eye(hidden)
    )
    mean = np.log(np.mean(np.exp(2 * np.asarray(curves.h)), axis=1)) / 2
    np.testing.assert_allclose(
        mean, np.asarray(norms.frobenius)[:time, 0] - np.log(hidden) / 2, rtol=1e-12, atol=1e-11
    )


def test_eigenvalues_below_one_do_not_bound_the_gradient(x64):
    """Pascanu et al. 2013, section 2.1 as stated, is false: spectral radius 0, ||J^20|| = 7.4e6."""
    w = jnp.asarray([[8.0, 8.0], [-8.0, -8.0]]).T  # h_t = tanh(h_{t-1} W + b), rows as vectors
    fixed = jnp.asarray([0.0, np.arctanh(0.5)])
    bias = fixed - jnp.tanh(fixed) @ w
    params = CellParams(jnp.zeros((1, 2)), w, bias, ())
    state = RNNState(jnp.tanh(fixed)[None])
    jacobians = state_jacobians(as_step(CELLS["rnn"]), params, state, jnp.zeros((20, 1, 1)))
    assert np.max(np.abs(np.linalg.eigvals(w))) < 1e-7
    np.testing.assert_allclose(jacobians[0, 0] @ jacobians[0, 0], 2 * jacobians[0, 0], rtol=1e-9)
    norms = product_log_norms(jacobians[:, 0])
    assert np.exp(np.asarray(norms.spectral)[20]) == pytest.approx(7.4e6, rel=0.01)


def mpmath_log_singular_values(factors):
    """Singular values of the product in 400 digits."""
    with mpmath.workdps(400):
        product = mpmath.eye(factors.shape[-1])
        for factor in factors:
            product = mpmath.matrix(factor.tolist()) * product
        return np.asarray([float(mpmath.log(s)) for s in mpmath.svd_r(product, compute_uv=False)])


def test_singular_values_against_extended_precision(x64):
    """Over 600 nats, where an SVD of the product in float64 ends at 36."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(200, 8, 8)) @ np.diag(np.exp(-np.linspace(0, 2, 8)))
    expected = mpmath_log_singular_values(factors)
    assert expected[0] - expected[-1] > 300
    got = log_singular_values(jnp.asarray(factors))
    np.testing.assert_allclose(got, expected, atol=1e-9)
    product = np.linalg.multi_dot(list(factors[::-1]))
    naive = np.log(np.linalg.svd(product, compute_uv=False))
    assert np.max(np.abs(naive - expected)) > 100  # the trap


def test_singular_spectrum_at_every_lag(x64):
    """Short lags, which an SVD resolves, and long ones, which only sweeps do, join smoothly."""
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(60, 5, 5))
    lags = np.asarray([1, 2, 7, 20, 60])
    got = singular_spectrum(jnp.asarray(factors), jnp.asarray(lags))
    for lag, row in zip(lags, got, strict=True):
        np.testing.assert_allclose(row, mpmath_log_singular_values(factors[:lag]), atol=1e-9)


def test_singular_values_of_what_is_exact(x64):
    q = np.asarray(jax.random.orthogonal(jax.random.key(0), 6, shape=(50,)))
    np.testing.assert_allclose(log_singular_values(q), np.zeros(6), atol=1e-12)
    scaled = log_singular_values(0.01 * q)
    np.testing.assert_allclose(scaled, np.full(6, 50 * np.log(0.01)), rtol=1e-12)
    dead = np.broadcast_to(np.diag([2.0, 0.5, 0.0]), (40, 3, 3))
    found = np.asarray(log_singular_values(dead))
    np.testing.assert_allclose(found[:2], [40 * np.log(2), -40 * np.log(2)], rtol=1e-12)
    assert found[2] == -np.inf


@pytest.fixture
def constant(x64):
    """A linear RNN with real eigenvalues of distinct magnitude, and its spectrum's logs."""
    values, rng = np.asarray([1.3, -0.9, 0.6, 0.2]), np.random.default_rng(1)
    basis, x = rng.normal(size=(4, 4)), rng.normal(size=(1500, 1, 4))
    params = linear_layer(basis @ np.diag(values) @ np.linalg.inv(basis))
    return params, RNNState(np.zeros((1, 4))), x, np.log(np.abs(values))


def test_exponents_of_a_constant_jacobian_are_its_eigenvalues(constant):
    params, state, x, logs = constant
    step = as_step(LINEAR)
    found = lyapunov_spectrum(step, params, state, x, warmup=300)[0]
    np.testing.assert_allclose(found, logs, atol=1e-10)
    two = lyapunov_spectrum(step, params, state, x, exponents=2, warmup=300)[0]
    np.testing.assert_allclose(two, logs[:2], atol=1e-10)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_exponents_sum_to_the_mean_log_determinant(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    step = as_step(cell)
    found = np.asarray(lyapunov_spectrum(step, params, state, x)).sum(axis=1)
    logs = np.linalg.slogdet(np.asarray(state_jacobians(step, params, state, x)))[1]
    mean = logs.mean(axis=0)
    singular = np.isneginf(mean)  # rectifiers that are off
    singular |= name == "fgr"  # c, o and h = o tanh(c) are all in its state
    np.testing.assert_allclose(found[~singular], mean[~singular], rtol=1e-9)
    assert np.all(found[singular] < -10)


@pytest.mark.parametrize(("name", "bias"), [("rnn", 0.0), ("lstm", 0.0), ("lstm", 1.0)])
def test_the_largest_exponent_is_the_slope_of_the_gradient(name, bias, x64):
    """Forward and reverse mode, on the joint state: the LSTM's h alone gives another number."""
    cell, hidden, time = CELLS[name], 16, 1500
    params = init_params(
        jax.random.key(0), cell, hidden, hidden, forget_bias=bias, dtype=jnp.float64
    )
    rng = np.random.default_rng(1)
    x, d_h = rng.normal(size=(time, 1, hidden)), rng.normal(size=(1, hidden))
    state = cell.init_state(1, hidden, jnp.float64)
    top = lyapunov_spectrum(as_step(cell), params, state, x, exponents=1)[0, 0]
    curve = np.asarray(measure_layer_lags(cell, params, state, x, d_h).state[:, 0])
    assert slope_per_step(curve, first=1) == pytest.approx(float(top), abs=0.01)


def test_lyapunov_refuses_what_makes_no_sense():
    cell = CELLS["rnn"]
    params = init_params(jax.random.key(0), cell, 2, 3)
    x, state = jnp.zeros((5, 1, 2)), cell.init_state(1, 3)
    with pytest.raises(ValueError, match="wanted 1 to 3"):
        lyapunov_spectrum(as_step(cell), params, state, x, exponents=4)
    with pytest.raises(ValueError, match="wanted 0 to 4"):
        lyapunov_spectrum(as_step(cell), params, state, x, warmup=5)
