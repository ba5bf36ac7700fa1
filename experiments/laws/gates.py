"""Gates that are forced, so that what they do is known."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.laws.error import Found, absolute_error, float64, log_error, tolerance, worst
from experiments.laws.layer import (
    LONGEST,
    Layer,
    compiled_gates,
    compiled_lags,
    forget_params,
    make_params,
)
from lm.cells.cell import chrono_bias_vector
from lm.cells.lstm import LSTM
from lm.gradients.gates import (
    carousel_log_norms,
    gate_saturation,
    histogram_shares,
    time_scale,
)

KOLMOGOROV = 1.95  # sqrt(n) x largest distance of distribution functions, 99.9 % quantile


def carousel(dtype: str) -> Found:
    """A unit and a row for each bias: row b's loss looks at unit b alone, and o = 1/2."""
    biases = np.asarray([-1.0, 0.0, 1.0, 3.0, 100.0])
    units = len(biases)
    layer = Layer(
        forget_params(biases, dtype),
        LSTM.init_state(units, units, dtype),
        jnp.ones((LONGEST - 1, units, 1), dtype),
        jnp.eye(units, dtype=dtype),
    )
    curves = compiled_lags(LSTM, *layer)
    _, gates = compiled_gates(LSTM, *layer[:3])
    product = float64(carousel_log_norms(gates["f"]))[:, 0]
    expected = np.arange(LONGEST)[:, None] * -np.log1p(np.exp(-biases))[None]
    through = float64(curves.c)
    error = worst(
        log_error(product, expected), log_error(through[1:], np.log(0.5) + expected[1:-1])
    )
    return error if np.all(through[0] == -np.inf) else np.inf, tolerance(dtype, 1e-10, 0.1)


def bias_time_scales(dtype: str) -> Found:
    """f = sigmoid(b): 1 / (1 - f) = 1 + e^b. The distance from 1 costs digits: tau epsilon."""
    biases = np.log(np.linspace(1, 999, 50))
    params, state = forget_params(biases, dtype), LSTM.init_state(1, len(biases), dtype)
    _, gates = compiled_gates(LSTM, params, state, jnp.ones((5, 1, 1), dtype))
    tau = float64(time_scale(gates["f"]))
    error = float(np.max(np.abs(tau / (1 + np.exp(biases)) - 1)))
    return error, tolerance(dtype, 1e-12, 2e-4)


def chrono_time_scales(dtype: str) -> Found:
    """Kolmogorov's distance of 100,000 time scales from the uniform distribution."""
    units, longest = 100_000, 50

    @jax.jit
    def measure(edges: jax.Array) -> jax.Array:
        b = chrono_bias_vector(jax.random.key(0), LSTM, units, longest, edges.dtype)
        return histogram_shares(time_scale(jax.nn.sigmoid(b[units : 2 * units])), edges)

    edges = np.linspace(2, longest, 101)
    below = np.cumsum(float64(measure(jnp.asarray(edges, dtype))))[:-1]
    # The last edge itself is left out: rounding may put the largest on either side of it.
    return units**0.5 * absolute_error(below[:-1], (edges[:-1] - 2) / (longest - 2)), KOLMOGOROV


def saturation(dtype: str) -> Found:
    """Shut, open, half open; and one unit that its input shuts and opens in turn."""
    biases = np.asarray([-50.0, 50.0, 0.0, 0.0])
    drive = np.asarray([0.0, 0.0, 0.0, 1.0])
    params = make_params(dtype, np.tile(drive, 4)[None], np.zeros((4, 16)), np.tile(biases, 4))
    x = jnp.asarray(np.resize([-9.0, 0.0, 9.0, 9.0], (40, 1, 1)), dtype)
    _, gates = compiled_gates(LSTM, params, LSTM.init_state(1, 4, dtype), x)
    errors = []
    for name in ("i", "f", "o"):
        found = gate_saturation(gates[name])
        errors.append(absolute_error(found.low, [1, 0, 0, 0.25]))
        errors.append(absolute_error(found.high, [0, 1, 0, 0.5]))
    return worst(*errors), tolerance(dtype, 1e-15, 1e-7)
