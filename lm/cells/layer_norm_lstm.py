"""The layer-norm LSTM (Ba, Kiros, Hinton 2016): every step's pre-activations are normalised.

    LN(x; s) = s * (x - mean x) / sqrt(var x + epsilon)         mean and variance over a row

    a = LN(x_t W_x; s_x) + LN(h_{t-1} W_h; s_h) + b             over all four gates together
    i, f, o = sigmoid(a)    g = tanh(a)                         packed in the order i, f, o, g
    c_t = f * c_{t-1} + i * g                                   the carry itself is not touched
    h_t = o * tanh(LN(c_t; s_c) + b_c)

The scale of W_x and W_h is no longer the cell's: only the gains' is. The biases come after the
norm, so the vector b has them and the input product has none.

Source: arXiv:1607.06450, equations 20 to 22, whose biases of the two norms of a are one here
with b: only their sum counts. epsilon is theirs of no published value: 1e-5, as in PyTorch.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lm.cells.cell import Vector, Vectors, make_cell
from lm.cells.lstm import LSTMState, activate

EPSILON = 1e-5


def normalise(x: jax.Array) -> jax.Array:
    """Rows [B, n] of mean 0 and variance 1."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + EPSILON)


def pre_activations(vectors: Vectors, z: jax.Array, u: jax.Array) -> jax.Array:
    """a [B, 4 H]."""
    s_x, s_h, b = (vector[None, :] for vector in vectors[:3])
    return s_x * normalise(z) + s_h * normalise(u) + b


def gate(vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array) -> LSTMState:
    """One step."""
    i, f, o, g = activate(pre_activations(vectors, z, u))
    c = f * state.c + i * g
    s_c, b_c = (vector[None, :] for vector in vectors[3:])
    return LSTMState(c, o * jnp.tanh(s_c * normalise(c) + b_c))


def activations(
    vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array
) -> dict[str, jax.Array]:
    """The four gates by name, each [B, H]."""
    return dict(zip("ifog", activate(pre_activations(vectors, z, u)), strict=True))


LAYER_NORM_LSTM = make_cell(
    "layer-norm LSTM",
    tuple("ifog"),
    LSTMState,
    gate,
    activations=activations,
    forget_gate="f",
    pointwise=False,  # the norms are over a layer's own units
    vectors=(
        Vector("s_x", gates=4, start=1.0),
        Vector("s_h", gates=4, start=1.0),
        Vector("b", gates=4, start=None),
        Vector("s_c", start=1.0),
        Vector("b_c"),
    ),
    learning_rate=20.0,
)
