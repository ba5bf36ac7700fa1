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

from lm.cells.cell import Cell, Pulled, Vector, Vectors, split_gates


class GRUState(NamedTuple):
    h: jax.Array  # [B, H]


class GRUTape(NamedTuple):
    """Derivative coefficients of one step, each [B, H]."""

    r: jax.Array  # dn_pre / d(pre-activation of r)
    q: jax.Array  # dh_t / d(pre-activation of q)
    n: jax.Array  # dh_t / dn_pre
    reset: jax.Array  # dn_pre / du_n
    h: jax.Array  # dh_t / dh_{t-1}, directly


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
    tape = GRUTape(
        r=(split_gates(u, 3)[2] + vectors[0][None, :]) * r * (1 - r),
        q=(state.h - n) * q * (1 - q),
        n=(1 - q) * (1 - n * n),
        reset=r,
        h=q,
    )
    return GRUState((1 - q) * n + q * state.h), tape


def pull_back(tape: GRUTape, d_state: GRUState) -> Pulled:
    d_h = d_state.h
    d_n = d_h * tape.n
    d_r, d_q, d_un = d_n * tape.r, d_h * tape.q, d_n * tape.reset
    return Pulled(
        (d_un.sum(axis=0),),
        GRUState(d_h * tape.h),
        jnp.concatenate([d_r, d_q, d_n], axis=-1),
        jnp.concatenate([d_r, d_q, d_un], axis=-1),
    )


GRU = Cell(
    "GRU",
    ("r", "q", "n"),
    GRUState,
    gate,
    linearize,
    pull_back,
    activations,
    vectors=(Vector("b_n"),),
    learning_rate=20.0,
)
