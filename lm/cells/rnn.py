"""The vanilla recurrent network (Elman 1990): h_t = phi(x_t W_x + b + h_{t-1} W_h)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, Pulled, Vectors


class RNNState(NamedTuple):
    h: jax.Array  # [B, H]


def tanh_gate(vectors: Vectors, state: RNNState, z: jax.Array, u: jax.Array) -> RNNState:
    """h_t = tanh(z_t + u_t)."""
    return RNNState(jnp.tanh(z + u))


def tanh_linearize(
    vectors: Vectors, state: RNNState, z: jax.Array, u: jax.Array
) -> tuple[RNNState, jax.Array]:
    h = jnp.tanh(z + u)
    return RNNState(h), 1 - h * h


def relu_gate(vectors: Vectors, state: RNNState, z: jax.Array, u: jax.Array) -> RNNState:
    """h_t = max(0, z_t + u_t)."""
    return RNNState(jax.nn.relu(z + u))


def relu_linearize(
    vectors: Vectors, state: RNNState, z: jax.Array, u: jax.Array
) -> tuple[RNNState, jax.Array]:
    h = jax.nn.relu(z + u)
    return RNNState(h), (h > 0).astype(h.dtype)


def pull_back(slope: jax.Array, d_state: RNNState) -> Pulled:
    """delta_t = dL/dh_t * phi'(z_t + u_t); nothing reaches h_{t-1} except through u_t."""
    delta = d_state.h * slope
    return Pulled((), RNNState(jnp.zeros_like(delta)), delta, delta)


TANH_RNN = Cell("tanh RNN", ("h",), RNNState, tanh_gate, tanh_linearize, pull_back)

# Le, Jaitly, Hinton 2015, arXiv:1504.00941: rectifiers, W_h = identity, biases 0.
IDENTITY_RNN = Cell(
    "identity ReLU RNN",
    ("h",),
    RNNState,
    relu_gate,
    relu_linearize,
    pull_back,
    recurrent_init="identity",
)
