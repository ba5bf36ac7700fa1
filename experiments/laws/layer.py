"""Small layers whose weights are known, and the measures that several laws look at."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.cells.cell import Cell, CellParams, init_params, make_cell
from lm.cells.rnn import RNNState
from lm.gradients.flow import (
    inject_at,
    measure_layer_lags,
    measure_layer_lengths,
    pull_back_log,
)
from lm.gradients.gates import gate_activations
from lm.gradients.jacobian import product_log_norms, run_states, state_jacobians
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.recurrence import as_step, project, run_forward

LONGEST = 1001  # steps of a lag curve: lags 0 .. 1,000

LINEAR = make_cell("linear RNN", ("h",), RNNState, lambda vectors, state, z, u: RNNState(z + u))


class Layer(NamedTuple):
    """One layer, what it reads and the gradient of the loss at its last output."""

    params: CellParams
    state: Any  # s_0, fields [B, H]
    x: jax.Array  # [T, B, D]
    d_h: jax.Array  # dL_T/dh_T [B, H]


def rotation(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Orthogonal matrices [..., N, N]."""
    return np.linalg.qr(rng.normal(size=shape))[0]


def make_layer(
    cell: Cell, dtype: str, time: int, batch: int = 1, hidden: int = 4, seed: int = 0
) -> Layer:
    """Random weights: W_h orthogonal gate by gate, every bias about 1/2, D = H."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_params(key, cell, hidden, hidden), jax.random.key(0))
    params = make_params(
        dtype,
        rng.normal(size=shapes.w_x.shape) / hidden**0.5,
        np.concatenate(
            [rotation(rng, hidden, hidden) for _ in range(cell.recurrent_gates)], axis=1
        ),
        rng.normal(0.5, 0.5, shapes.b.shape),
        [rng.normal(size=vector.shape) for vector in shapes.vectors],
    )
    fields = range(len(jax.tree.leaves(cell.init_state(1, 1))))
    state = cell.state(*(jnp.asarray(rng.normal(size=(batch, hidden)), dtype) for _ in fields))
    x = jnp.asarray(rng.normal(size=(time, batch, hidden)), dtype)
    return Layer(params, state, x, jnp.asarray(rng.normal(size=(batch, hidden)), dtype))


def make_params(dtype: str, w_x: Any, w_h: Any, b: Any, vectors: Any = ()) -> CellParams:
    """NumPy weights as parameters of `dtype`."""
    w_x, w_h, b = (jnp.asarray(leaf, dtype) for leaf in (w_x, w_h, b))
    return CellParams(w_x, w_h, b, tuple(jnp.asarray(vector, dtype) for vector in vectors))


def linear_params(w: np.ndarray, dtype: str) -> CellParams:
    """h_t = x_t + h_{t-1} W."""
    return make_params(dtype, np.eye(len(w)), w, np.zeros(len(w)))


def forget_params(biases: np.ndarray, dtype: str) -> CellParams:
    """An LSTM whose weights are all 0: f = sigmoid(biases), i = o = 1/2, g = 0. D = 1."""
    units, zero = len(biases), np.zeros
    b = np.concatenate([zero(units), biases, zero(2 * units)])
    return make_params(dtype, zero((1, 4 * units)), zero((units, 4 * units)), b)


# What several laws look at, so that each shape is compiled once.
compiled_lags = jax.jit(measure_layer_lags, static_argnums=0)
compiled_gates = jax.jit(gate_activations, static_argnums=0)
compiled_lengths = jax.jit(measure_layer_lengths, static_argnums=0, static_argnames="lengths")
compiled_norms = jax.jit(product_log_norms)


@partial(jax.jit, static_argnums=0)
def compiled_states(cell: Cell, params: CellParams, state: Any, x: jax.Array) -> Any:
    return run_states(as_step(cell), params, state, x)


@partial(jax.jit, static_argnums=0)
def compiled_jacobians(cell: Cell, params: CellParams, state: Any, x: jax.Array) -> jax.Array:
    return state_jacobians(as_step(cell), params, state, x)


@partial(jax.jit, static_argnums=0)
def compiled_exponents(cell: Cell, params: CellParams, state: Any, x: jax.Array) -> jax.Array:
    return lyapunov_spectrum(as_step(cell), params, state, x)


def run_layer(cell: Cell, layer: Layer) -> tuple[Any, Any]:
    """(Trace, Flow) of a layer, through the engine's own backward step."""
    z = project(layer.x, layer.params.w_x, layer.params.b)
    _, trace = run_forward(cell, layer.params.w_h, layer.params.vectors, layer.state, z, None)
    time = len(layer.x)
    return trace, pull_back_log(cell, layer.params, trace, inject_at(time, time - 1, layer.d_h))
