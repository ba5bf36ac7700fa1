"""The gated recurrent unit (Cho et al. 2014), reset gate after the product, as in cuDNN.

    r, q = sigmoid(z + u)                  reset and update gate
    n = tanh(z_n + r * (u_n + b_n))        candidate
    h_t = (1 - q) * n + q * h_{t-1}        packed in the order r, q, n

The update gate is `z` in the papers; `q` here, since z is the input product throughout.
Applying r after the product (Chung et al. 2014 put it before) leaves one product a step and
is what PyTorch, Flax and cuDNN compute; b_n is their second bias.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, Pulled, Vectors, split_gates


class GRUState(NamedTuple):
    h: jax.Array  # [B, H]


class GRUTape(NamedTuple):
    """Derivative coefficients of one step."""

    gates: jax.Array  # dh_t / d(pre-activation), packed as the gates [B, 3 H]
    reset: jax.Array  # dn_pre / du_n [B, H]
    h: jax.Array  # dh_t / dh_{t-1}, directly [B, H]


def gate(vectors: Vectors, state: GRUState, z: jax.Array, u: jax.Array) -> GRUState:
    """One step of the GRU."""
    return linearize(vectors, state, z, u)[0]


def activations(
    vectors: Vectors, state: GRUState, z: jax.Array, u: jax.Array
) -> dict[str, jax.Array]:
    """Reset gate, update gate and candidate, each [B, H]."""
    (b_n,) = vectors
    z_r, z_q, z_n = split_gates(z, 3)
    u_r, u_q, u_n = split_gates(u, 3)
    r, q = jax.nn.sigmoid(z_r + u_r), jax.nn.sigmoid(z_q + u_q)
    return {"r": r, "q": q, "n": jnp.tanh(z_n + r * (u_n + b_n[None, :]))}


def linearize(
    vectors: Vectors, state: GRUState, z: jax.Array, u: jax.Array
) -> tuple[GRUState, GRUTape]:
    r, q, n = activations(vectors, state, z, u).values()
    to_n = (1 - q) * (1 - n * n)
    to_r = to_n * (split_gates(u, 3)[2] + vectors[0][None, :]) * r * (1 - r)
    to_q = (state.h - n) * q * (1 - q)
    tape = GRUTape(jnp.concatenate([to_r, to_q, to_n], axis=-1), reset=r, h=q)
    return GRUState((1 - q) * n + q * state.h), tape


def pull_back(tape: GRUTape, d_state: GRUState) -> Pulled:
    d_h = d_state.h
    d_z = tape.gates * jnp.concatenate([d_h] * 3, axis=-1)
    d_r, d_q, d_n = split_gates(d_z, 3)
    d_un = d_n * tape.reset
    d_u = jnp.concatenate([d_r, d_q, d_un], axis=-1)
    return Pulled((d_un.sum(axis=0),), GRUState(d_h * tape.h), d_z, d_u)


GRU = Cell(
    "GRU",
    ("r", "q", "n"),
    GRUState,
    gate,
    linearize,
    pull_back,
    activations,
    vectors=1,
    learning_rate=20.0,
)
