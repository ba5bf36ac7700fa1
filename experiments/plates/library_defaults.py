"""How four libraries start their recurrent layers, when nothing is said.

PyTorch   nn.LSTM, nn.RNN: every weight and both biases U(-1/sqrt(H), 1/sqrt(H));
          nn.Embedding: N(0, 1)
Keras     LSTM, SimpleRNN: kernel Glorot uniform, recurrent kernel [H, K] orthogonal as a whole
          (a gate's block then has 1/sqrt(gates) of a rotation's scale), biases 0, forget bias
          1; Embedding: U(-0.05, 0.05)
Flax      OptimizedLSTMCell, SimpleCell: kernel LeCun normal, recurrent kernel orthogonal gate by
          gate, biases 0; Embed: N(0, 1/D)
Haiku     LSTM: one linear map of [x, h], truncated normal of standard deviation
          1/sqrt(D + H) before it is cut at two of them, forget bias 1; Embed: truncated normal,
          1 before the cut. (Its VanillaRNN is a ReLU network, and stands on no tanh diagram.)

Source: their documentation and source text; flax 0.12 and dm-haiku 0.0.17.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm.cells.cell import Cell, CellParams, forget_bias_vector
from lm.linalg import orthogonal

CUT = 0.8796  # standard deviation of a standard normal that is cut at -2 and 2


@dataclass(frozen=True)
class Library:
    """One library's defaults.

    Attributes:
      cells: names in CELLS that its defaults are known for.
      forget_bias: of the LSTM.
      init: (key, cell, H) -> parameters with D = H.
      gain: (gates) -> scale of a gate's recurrent block: 1 for a rotation, or s for random
        entries of standard deviation s / sqrt(H), whose spectral radius is near s.
      input_gain: (gates) -> standard deviation of z_t for inputs of variance 1, D = H.
      embedding_std: (D) -> of its embedding layer.
    """

    name: str
    cells: tuple[str, ...]
    forget_bias: float
    init: Callable[[jax.Array, Cell, int], CellParams]
    gain: Callable[[int], float]
    input_gain: Callable[[int], float]
    embedding_std: Callable[[int], float]


def init_pytorch(key: jax.Array, cell: Cell, hidden: int) -> CellParams:
    width, bound = len(cell.gates) * hidden, hidden**-0.5
    shapes = ((hidden, width), (hidden, width), (width,), (width,))
    w_x, w_h, b_x, b_h = (
        jax.random.uniform(k, shape, jnp.float32, -bound, bound)
        for k, shape in zip(jax.random.split(key, 4), shapes, strict=True)
    )
    return CellParams(w_x, w_h, b_x + b_h, ())


def init_keras(key: jax.Array, cell: Cell, hidden: int) -> CellParams:
    width = len(cell.gates) * hidden
    key_x, key_h = jax.random.split(key)
    bound = (6 / (hidden + width)) ** 0.5
    w_x = jax.random.uniform(key_x, (hidden, width), jnp.float32, -bound, bound)
    w_h = orthogonal(key_h, width)[:hidden]
    return CellParams(w_x, w_h, forget_bias_vector(cell, hidden, 1.0, jnp.float32), ())


def init_flax(key: jax.Array, cell: Cell, hidden: int) -> CellParams:
    gates = len(cell.gates)
    key_x, key_h = jax.random.split(key)
    w_x = jax.random.truncated_normal(key_x, -2, 2, (hidden, gates * hidden)) / CUT / hidden**0.5
    w_h = jnp.concatenate([orthogonal(k, hidden) for k in jax.random.split(key_h, gates)], axis=1)
    return CellParams(w_x, w_h, jnp.zeros(gates * hidden), ())


def init_haiku(key: jax.Array, cell: Cell, hidden: int) -> CellParams:
    width = len(cell.gates) * hidden
    w = jax.random.truncated_normal(key, -2, 2, (2 * hidden, width)) / (2 * hidden) ** 0.5
    bias = forget_bias_vector(cell, hidden, 1.0, jnp.float32)
    return CellParams(w[:hidden], w[hidden:], bias, ())


LIBRARIES = (
    Library(
        "PyTorch", ("lstm", "rnn"), 0.0, init_pytorch,
        lambda gates: 3**-0.5, lambda gates: 3**-0.5, lambda size: 1.0,
    ),
    Library(
        "Keras", ("lstm", "rnn"), 1.0, init_keras,
        lambda gates: gates**-0.5, lambda gates: (2 / (1 + gates)) ** 0.5,
        lambda size: 0.05 / 3**0.5,
    ),
    Library(
        "Flax", ("lstm", "rnn"), 0.0, init_flax,
        lambda gates: 1.0, lambda gates: 1.0, lambda size: float(np.sqrt(1 / size)),
    ),
    Library(
        "Haiku", ("lstm",), 1.0, init_haiku,
        lambda gates: CUT / 2**0.5, lambda gates: CUT / 2**0.5, lambda size: CUT,
    ),
)  # fmt: skip
