"""minGRU and minLSTM: gates that see the input alone, so that time can be run in parallel.

    minGRU     q = sigmoid(z_q)                         h_t = (1 - q) * h_{t-1} + q * n
    minLSTM    f = sigmoid(z_f), i = sigmoid(z_i)       h_t = f' * h_{t-1} + i' * n
               f' = f / (f + i), i' = i / (f + i)       n = z_n in both

packed in the order q, n and f, i, n. There is no recurrent product: h_t = a_t * h_{t-1} + b_t
with a_t and b_t known for every t at once, and dh_t/dh_{t-1} is diagonal: a product of a's.
Since f' + i' = 1, both are running averages, h_t = a * h_{t-1} + (1 - a) * n.

The update gate is `z` in the paper and `q` here, since z is the input product throughout. It opens
to the new, where the GRU's q (`lm.cells.gru`) holds the old.

Source: Feng et al. 2024, Were RNNs all we needed? (arXiv:2410.01201), sections 3.1.2 and 3.2.3,
with n = z_n as there, not the positive g(z_n) of their log-space variant: a lies in (0, 1), and
products of it need no logarithms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.cells.cell import Vectors, make_diagonal_cell, split_gates

LEAST = 40  # -log of the least gate; the square of e^40 is within float32's range


class MinimalState(NamedTuple):
    h: jax.Array  # [B, H]


def gru_diagonal(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """minGRU: 1 - q and q * n of every step, each [..., H]."""
    z_q, n = split_gates(z, 2)
    # Not 1 - q, which is 0 where z_q is 17: an open gate keeps e^-17 of the old.
    return jax.nn.sigmoid(-z_q), jax.nn.sigmoid(z_q) * n


def lstm_diagonal(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """minLSTM: f' and i' * n of every step, each [..., H]."""
    f, i = gate_shares(z)
    return f, i * split_gates(z, 3)[2]


def gate_shares(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f' = f / (f + i) = (1 + e^-z_i) / (2 + e^-z_f + e^-z_i), and i' likewise, not as 1 - f'.

    A gate below e^-40 counts as that: the share of two that round to 0 is still a number, and so
    is its derivative. sigmoid(log f - log i) needs no limit and takes a fifth of the layer's time.
    """
    z_f, z_i, _ = split_gates(z, 3)
    e_f, e_i = (jnp.exp(jnp.minimum(-z, LEAST)) for z in (z_f, z_i))
    both = 2 + e_f + e_i
    return (1 + e_i) / both, (1 + e_f) / both


def gru_activations(
    vectors: Vectors, state: MinimalState, z: jax.Array, u: jax.Array
) -> dict[str, jax.Array]:
    """Update gate and candidate, each [B, H]."""
    z_q, n = split_gates(z, 2)
    return {"q": jax.nn.sigmoid(z_q), "n": n}


def lstm_activations(
    vectors: Vectors, state: MinimalState, z: jax.Array, u: jax.Array
) -> dict[str, jax.Array]:
    """f' and i', the gates as they act, and the candidate, each [B, H]."""
    f, i = gate_shares(z)
    return {"f": f, "i": i, "n": split_gates(z, 3)[2]}


MINIMAL_GRU = make_diagonal_cell(
    "minGRU",
    ("q", "n"),
    MinimalState,
    gru_diagonal,
    activations=gru_activations,
    learning_rate=20.0,
)
MINIMAL_LSTM = make_diagonal_cell(
    "minLSTM",
    ("f", "i", "n"),
    MinimalState,
    lstm_diagonal,
    activations=lstm_activations,
    forget_gate="f",
    learning_rate=20.0,
)
