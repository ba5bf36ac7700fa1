"""Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997, Gers et al. 2000).

    i, f, o = sigmoid(z + u)        g = tanh(z + u)        packed in the order i, f, o, g
    c_t = f * c_{t-1} + i * g       h_t = o * tanh(c_t)

The sigmoid gates stand side by side. PyTorch and Flax pack i, f, g, o; conversion is a
permutation of columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, Pulled, Vectors, split_gates


class LSTMState(NamedTuple):
    c: jax.Array  # cell state [B, H]
    h: jax.Array  # hidden state [B, H]


class LSTMTape(NamedTuple):
    """Derivative coefficients of one step."""

    # d(c_t; of gate o, h_t) / d(pre-activation), packed as the gates [B, 4 H]: as wide as z, so
    # that the engine can write them over it.
    gates: jax.Array
    h: jax.Array  # dh_t / dc_t [B, H]
    c: jax.Array  # dc_t / dc_{t-1}: the constant error carousel [B, H]


def gate(vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array) -> LSTMState:
    """The four gates, the cell state and the hidden state of one step."""
    i, f, o, g = activate(z + u)
    c = f * state.c + i * g
    return LSTMState(c, o * jnp.tanh(c))


def activate(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Pre-activations [B, 4 H] -> activations of i, f, o, g, each [B, H]."""
    a_i, a_f, a_o, a_g = split_gates(a, 4)
    return jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o), jnp.tanh(a_g)


def activations(
    vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array
) -> dict[str, jax.Array]:
    """The four gates by name, each [B, H]."""
    return dict(zip(("i", "f", "o", "g"), activate(z + u), strict=True))


def linearize(
    vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array
) -> tuple[LSTMState, LSTMTape]:
    """One step, and the coefficients with which its backward step only multiplies and adds."""
    i, f, o, g = activate(z + u)
    c = f * state.c + i * g
    tanh_c = jnp.tanh(c)
    to_gates = [g * i * (1 - i), state.c * f * (1 - f), tanh_c * o * (1 - o), i * (1 - g * g)]
    tape = LSTMTape(jnp.concatenate(to_gates, axis=-1), o * (1 - tanh_c * tanh_c), f)
    return LSTMState(c, o * tanh_c), tape


def d_cell_state(tape: LSTMTape, d_state: LSTMState) -> jax.Array:
    """dL/dc_t in total: through c_{t+1}, and through h_t."""
    return d_state.c + d_state.h * tape.h


def pull_back(tape: LSTMTape, d_state: LSTMState) -> Pulled:
    d_c = d_cell_state(tape, d_state)
    delta = tape.gates * jnp.concatenate([d_c, d_c, d_state.h, d_c], axis=-1)
    return Pulled((), LSTMState(d_c * tape.c, jnp.zeros_like(d_c)), delta, delta)


LSTM = Cell(
    "LSTM",
    ("i", "f", "o", "g"),
    LSTMState,
    gate,
    linearize,
    pull_back,
    activations,
    d_carousel=d_cell_state,
    written_over_z="gates",
    forget_gate="f",
    learning_rate=20.0,
)
