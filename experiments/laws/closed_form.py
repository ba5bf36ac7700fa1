"""Linear recurrences and known factors, whose gradients a formula gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

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
    LINEAR,
    LONGEST,
    compiled_lags,
    compiled_lengths,
    compiled_norms,
    linear_params,
    make_layer,
    make_params,
    rotation,
)
from lm.cells.rnn import RNNState
from lm.gradients.jacobian import singular_spectrum
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.gradients.sensitivity import pascanu_omega, state_sensitivity
from lm.gradients.statistics import E_FOLD, FLOAT32_EPSILON, horizon
from lm.optim import clip_by_global_norm, global_norm
from lm.recurrence import as_step


def rotation_curve(rho: float, dtype: str) -> np.ndarray:
    """Lag curve of a linear RNN with W = rho Q, less its value at lag 0. [lags, B] nats."""
    layer = make_layer(LINEAR, dtype, LONGEST, batch=2, hidden=16)
    q = rotation(np.random.default_rng(1), 16, 16)
    params = linear_params(rho * q, dtype)
    log = float64(compiled_lags(LINEAR, params, *layer[1:]).h)
    return log - np.log(np.linalg.norm(float64(layer.d_h), axis=1))[None]


def rotation_lags(dtype: str) -> Found:
    """From e^-693 to e^405: far beyond float32's range."""
    lags = np.arange(LONGEST)[:, None]
    errors = [log_error(rotation_curve(r, dtype), lags * np.log(r)) for r in (0.5, 1.0, 1.5)]
    return worst(*errors), tolerance(dtype, 2e-11, 5e-3)


def rotation_norms(dtype: str) -> Found:
    """Spectral norm rho^lag, Frobenius norm sqrt(H) rho^lag."""
    lags, hidden = np.arange(LONGEST), 6
    q = rotation(np.random.default_rng(0), hidden, hidden)
    factors = np.stack([rho * q for rho in (0.5, 1.0, 1.5)])
    expected = lags[:, None] * np.log([0.5, 1.0, 1.5])[None]
    jacobians = np.broadcast_to(factors, (LONGEST - 1, *factors.shape))
    norms = compiled_norms(jnp.asarray(jacobians, dtype))
    error = worst(
        log_error(norms.spectral, expected),
        log_error(norms.frobenius, expected + np.log(hidden) / 2),
    )
    return error, tolerance(dtype, 2e-11, 5e-3)


def scalar_lengths(dtype: str) -> Found:
    """h_t = lambda h_{t-1}, h_0 = 1, L_T = h_T = lambda^T: dL_T/dlambda = T lambda^(T-1)."""
    value, lengths = 1 - 2.0**-8, (1, 2, 10, 100, 1000, 10_000)
    params = linear_params(np.full((1, 1), value), dtype)
    state = RNNState(jnp.ones((1, 1), dtype))
    x, d_h = jnp.zeros((lengths[-1], 1, 1), dtype), jnp.ones((len(lengths), 1, 1), dtype)
    log = compiled_lengths(LINEAR, params, state, x, d_h, lengths=lengths)[:, 0]
    at = np.asarray(lengths)
    error = log_error(log, np.log(at) + (at - 1) * np.log(value))
    return error, tolerance(dtype, 2e-11, 5e-3)


def known_factors(dtype: str) -> Found:
    """J_t = U_{t+1} D_t U_t^T: the logs of the D_t add up, to values over 900 nats apart."""
    rng = np.random.default_rng(0)
    time, size, lags = 1000, 6, (1, 10, 100, 1000)
    u = rotation(rng, time + 1, size, size)
    logs = np.linspace(0.1, -0.9, size) + 0.3 * rng.normal(size=(time, size))
    factors = u[1:] @ (np.exp(logs)[..., None] * u[:-1].transpose(0, 2, 1))
    found = jax.jit(singular_spectrum)(jnp.asarray(factors, dtype), jnp.asarray(lags))
    sums = np.cumsum(logs, axis=0)[np.asarray(lags) - 1]
    error = log_error(found, np.sort(sums, axis=1)[:, ::-1])
    return error, tolerance(dtype, 2e-11, 1e-2)


def constant_jacobian(dtype: str) -> Found:
    """A linear RNN whose eigenvalues are 1.25, -0.9, 0.6 and 0.2."""
    values = np.asarray([1.25, -0.9, 0.6, 0.2])
    rng = np.random.default_rng(0)
    basis = rotation(rng, 4, 4) + 0.3 * rng.normal(size=(4, 4))
    params = linear_params(basis @ np.diag(values) @ np.linalg.inv(basis), dtype)
    x, state = jnp.zeros((1500, 1, 4), dtype), LINEAR.init_state(1, 4, dtype)
    measure = jax.jit(partial(lyapunov_spectrum, as_step(LINEAR), warmup=300))
    error = log_error(measure(params, state, x)[0], np.log(np.abs(values)))
    return error, tolerance(dtype, 1e-12, 3e-4)


def rotation_horizons(dtype: str) -> Found:
    """Steps to e^-1, and to float32's epsilon: log(level) / log(rho)."""
    rho = 1 - 2.0**-5
    curve = rotation_curve(rho, dtype)[:, 0]
    errors = [
        abs(horizon(curve, level) / (level / np.log(rho)) - 1)
        for level in (E_FOLD, FLOAT32_EPSILON)
    ]
    return worst(*errors), tolerance(dtype, 1e-12, 1e-4)


def clipped_norms(dtype: str) -> Found:
    """3, 4 and their norm 5, times powers of two whose squares no float of this type can hold."""
    power = 900.0 if dtype == "float64" else 100.0
    errors = []
    for scale in (2.0**-power, 1.0, 2.0**power):
        grads = {
            "w": jnp.asarray([3 * scale, 0.0], dtype),
            "b": jnp.asarray([-4 * scale], dtype),
        }
        errors.append(abs(float(jax.jit(global_norm)(grads)) / (5 * scale) - 1))
        for most in (0.25, 2.0, np.inf):
            clipped = jax.jit(clip_by_global_norm)(grads, jnp.asarray(most, dtype))
            factor = min(5 * scale, most) / 5
            errors.append(relative_error(clipped["w"], np.asarray([3 * factor, 0])))
            errors.append(relative_error(clipped["b"], np.asarray([-4 * factor])))
    return worst(*errors), tolerance(dtype, 1e-15, 1e-6)


def rotation_omega(dtype: str) -> Found:
    """0 for an orthogonal W."""
    errors = [
        absolute_error(
            pascanu_omega(jnp.asarray(rotation_curve(rho, dtype), dtype)), (rho - 1) ** 2
        )
        for rho in (0.5, 1.0, 1.5)
    ]
    return worst(*errors), tolerance(dtype, 1e-11, 1e-3)


def impulse_response(dtype: str) -> Found:
    """For white inputs, E (dh/dlambda)^2 is the sum of squares of the impulse response."""
    errors = []
    measure = jax.jit(partial(state_sensitivity, as_step(LINEAR)))
    x = jnp.asarray(np.arange(3000) == 0, dtype)[:, None, None]
    for value in (0.25, 0.875, 1 - 2.0**-6):
        params = linear_params(np.full((1, 1), value), dtype)
        direction = make_params(dtype, np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1))
        log = float64(measure(params, LINEAR.init_state(1, 1, dtype), x, direction))
        expected = (1 + value**2) / (1 - value**2) ** 3
        errors.append(abs(float(np.exp(2 * log).sum()) / expected - 1))
    return worst(*errors), tolerance(dtype, 1e-11, 1e-3)
