"""What a recurrent cell is: its gate equations, with everything linear lifted out of them.

z_t = x_t W_x + b                          every t at once, outside the recurrence
u_t = h_{t-1} W_h                          the only product inside it
s_t = gate(vectors, s_{t-1}, z_t, u_t)     this is the cell

A diagonal cell has no recurrent product: W_h is [H, 0], u_t is empty, and
h_t = a_t * h_{t-1} + b_t          (a_t, b_t) = diagonal(z_t), every t at once

The gates work row by row, mostly elementwise; what a norm takes a mean of is a row's. A cell whose
product reads more of the state than h says what: `lm.cells.feedback`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lm.linalg import orthogonal

Vectors = tuple[jax.Array, ...]  # parameters that enter the gates elementwise, as `Vector` says
Tape = Any  # whatever `pull_back` needs to know of one step


class State(Protocol):
    """What a cell carries from step to step: a NamedTuple of [B, H] arrays, one of them `h`."""

    @property
    def h(self) -> jax.Array: ...


class Vector(NamedTuple):
    """A parameter that enters the gates elementwise, [gates * H]."""

    name: str
    gates: int = 1  # how many gates it covers, in packing order
    start: float | None = 0.0  # of every entry; None: the gates' biases, forget bias and all


class Feedback(NamedTuple):
    """A field of the state that the recurrent product reads beside h."""

    field: str
    gates: int  # the first so many gates see it


class Pulled(NamedTuple):
    """The cotangents that one step sends back, given the cotangent of its new state."""

    vectors: Vectors  # summed over the batch
    state: Any  # of s_{t-1}, without the path through u_t
    z: jax.Array  # dL/dz_t [B, K]
    u: jax.Array  # dL/du_t [B, K]; the same object as z where the gates see only z + u


class CellParams(NamedTuple):
    """Parameters of one recurrent layer."""

    w_x: jax.Array  # [D, K]
    w_h: jax.Array  # [H, K]; [H, 0] of a diagonal cell; with feedback its blocks come after
    b: jax.Array  # [K]; [0] where the biases are one of the vectors
    vectors: Vectors  # each [its gates * H]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell as a record of pure functions.

    Attributes:
      name: as in the literature, for figures and tables.
      gates: names of the gates in the order in which their H columns are packed into K.
      state: NamedTuple class of the state; its field `h` [B, H] is the output.
      gate: (vectors, state, z, u) -> state, the equations. z and u are [B, K].
      linearize: (vectors, state, z, u) -> (state, tape): `gate`, and its derivative
        coefficients. Defaults to `jax.vjp` of `gate`; written by hand it can store less.
      pull_back: (tape, cotangent of the new state) -> Pulled. Goes with `linearize`.
      activations: (vectors, state, z, u) -> the gates' activations by name, each [B, H], for
        looking at; None where there are no gates to look at.
      d_carousel: (tape, cotangent of the new state) -> dL/dc_t [B, H], the path through the
        step's own h_t included. None: not known, or no c.
      written_over_z: the field of the tape, [B, K], that the engine writes over z as it goes, and
        dL/dz over it on the way back: two arrays of [T, B, K] less to hold and to bring into the
        caches. Every z_t must be used up before it: see lm.scans.scan_over. None: no field.
      forget_gate: the gate that `forget_bias` is added to, or None.
      vectors: the elementwise parameters that `gate` takes.
      feedback: what the recurrent product reads beside h.
      diagonal: of a cell without a recurrent product: z [..., K] -> (a, b), each [..., H], with
        h_t = a_t * h_{t-1} + b_t for h the whole state. None: the cell has one.
      recurrent_init: how W_h starts, gate by gate, a name of RECURRENT_INITS.
      pointwise: every unit's gates see their own z, u, state and vectors alone, and the h of a unit
        whose weights and biases are 0 stays at 0: dead units may be added to it (lm.alignment).
      learning_rate: of plain SGD, with the loss a mean per token and a clip of 0.25, that
        suits a word-level language model of this cell. A vanilla RNN fails at an LSTM's.
    """

    name: str
    gates: tuple[str, ...]
    state: type
    gate: Callable[[Vectors, Any, jax.Array, jax.Array], Any]
    linearize: Callable[[Vectors, Any, jax.Array, jax.Array], tuple[Any, Tape]]
    pull_back: Callable[[Tape, Any], Pulled]
    activations: Callable[[Vectors, Any, jax.Array, jax.Array], dict[str, jax.Array]] | None = None
    d_carousel: Callable[[Tape, Any], jax.Array] | None = None
    written_over_z: str | None = None
    forget_gate: str | None = None
    vectors: tuple[Vector, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    diagonal: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None
    recurrent_init: str = "orthogonal"
    pointwise: bool = True
    learning_rate: float = 10.0

    @property
    def recurrent_gates(self) -> int:
        """How many blocks [H, H] W_h has: one a gate and what feedback adds, or none."""
        if self.diagonal is not None:
            return 0
        return len(self.gates) + sum(fed.gates for fed in self.feedback)

    @property
    def biased_gates(self) -> int:
        """How many gates b has entries for: all, or none where a vector holds the biases."""
        return 0 if any(vector.start is None for vector in self.vectors) else len(self.gates)

    def init_state(self, batch: int, hidden: int, dtype: Any = jnp.float32) -> Any:
        """The zero state: every field [B, H]."""
        return self.state(*(jnp.zeros((batch, hidden), dtype) for _ in self.state._fields))  # type: ignore[attr-defined]


def make_linearize(
    gate: Callable[[Vectors, Any, jax.Array, jax.Array], Any],
) -> Callable[[Vectors, Any, jax.Array, jax.Array], tuple[Any, Tape]]:
    """The automatic `linearize`: the tape is the residuals that autodiff keeps of one step."""

    def linearize(vectors: Vectors, state: Any, z: jax.Array, u: jax.Array) -> tuple[Any, Tape]:
        return jax.vjp(gate, vectors, state, z, u)

    return linearize


def pull_back_tape(tape: Tape, d_state: Any) -> Pulled:
    """The automatic `pull_back`, for a tape made by `make_linearize`."""
    return Pulled(*tape(d_state))


def make_cell(
    name: str,
    gates: tuple[str, ...],
    state: type,
    gate: Callable[[Vectors, Any, jax.Array, jax.Array], Any],
    **options: Any,
) -> Cell:
    """A cell from its gate equations alone; the derivative is taken automatically."""
    return Cell(name, gates, state, gate, make_linearize(gate), pull_back_tape, **options)


def make_sum_cell(
    name: str,
    gates: tuple[str, ...],
    state: type,
    gate_of_sum: Callable[[Vectors, Any, jax.Array], Any],
    **options: Any,
) -> Cell:
    """A cell whose gates see z + u alone: its equations are (vectors, state, a) -> state.

    dL/dz is dL/du then, and the engine stores one array for both.
    """

    def gate(vectors: Vectors, state: Any, z: jax.Array, u: jax.Array) -> Any:
        return gate_of_sum(vectors, state, z + u)

    def linearize(vectors: Vectors, state: Any, z: jax.Array, u: jax.Array) -> tuple[Any, Tape]:
        return jax.vjp(gate_of_sum, vectors, state, z + u)

    def pull_back(tape: Tape, d_state: Any) -> Pulled:
        d_vectors, d_prev, delta = tape(d_state)
        return Pulled(d_vectors, d_prev, delta, delta)

    return Cell(name, gates, state, gate, linearize, pull_back, **options)


def make_diagonal_cell(
    name: str,
    gates: tuple[str, ...],
    state: type,
    diagonal: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    **options: Any,
) -> Cell:
    """A cell h_t = a_t * h_{t-1} + b_t from (a, b) = diagonal(z); h is its state's only field."""

    def gate(vectors: Vectors, s_prev: Any, z: jax.Array, u: jax.Array) -> Any:
        a, b = diagonal(z)
        return state(a * s_prev.h + b)

    return make_cell(name, gates, state, gate, diagonal=diagonal, **options)


def split_gates(packed: jax.Array, count: int) -> list[jax.Array]:
    """[..., count * H] -> count arrays [..., H], in packing order."""
    hidden = packed.shape[-1] // count
    return [packed[..., k * hidden : (k + 1) * hidden] for k in range(count)]


def identity(key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """The identity matrix; nothing is drawn."""
    return jnp.eye(size, dtype=dtype)


def gaussian(key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """Entries from N(0, 1/size): norms kept on average, singular values spread from 0 to 2."""
    return jax.random.normal(key, (size, size), dtype) / size**0.5


# How a block [H, H] of W_h may start; the names are in lm.config too, which imports no JAX.
RECURRENT_INITS: dict[str, Callable[[jax.Array, int, Any], jax.Array]] = {
    "orthogonal": orthogonal,
    "identity": identity,
    "gaussian": gaussian,
}


def init_params(
    key: jax.Array,
    cell: Cell,
    input_size: int,
    hidden: int,
    *,
    forget_bias: jax.Array | float = 1.0,
    recurrent_gain: jax.Array | float = 1.0,
    recurrent_init: str = "",
    chrono: int = 0,
    dtype: Any = jnp.float32,
) -> CellParams:
    """Variance-preserving start: W_x ~ N(0, 1/D); W_h = gain * Q gate by gate; biases 0.

    Args:
      key: a typed PRNG key.
      forget_bias: added to the bias of `cell.forget_gate`; ignored by cells without one.
      recurrent_gain: multiplies W_h, where there is one. Both may be traced.
      recurrent_init: a name of RECURRENT_INITS; empty: the cell's own.
      chrono: T_max of chrono initialisation, which takes the place of `forget_bias`; 0: none.
      dtype: of the parameters.

    Source: Saxe et al. 2014 (orthogonal), Le et al. 2015 arXiv:1504.00941 (identity),
    Jozefowicz et al. 2015 (forget bias 1).
    """
    gates = len(cell.gates)
    key_x, key_h, key_b = jax.random.split(key, 3)
    w_x = jax.random.normal(key_x, (input_size, gates * hidden), dtype) / input_size**0.5
    draw = RECURRENT_INITS[recurrent_init or cell.recurrent_init]
    keys = jax.random.split(key_h, cell.recurrent_gates)
    none = jnp.zeros((hidden, 0), dtype)
    w_h = jnp.concatenate([none, *(draw(k, hidden, dtype) for k in keys)], axis=1)
    w_h = w_h * jnp.asarray(recurrent_gain, dtype)
    b, vectors = start_vectors(key_b, cell, hidden, forget_bias, chrono, dtype)
    return CellParams(w_x, w_h, b, vectors)


def start_vectors(
    key: jax.Array,
    cell: Cell,
    hidden: int,
    forget_bias: jax.Array | float,
    chrono: int,
    dtype: Any,
) -> tuple[jax.Array, Vectors]:
    """(b, vectors) at the start: the gates' biases in b or in the vector that holds them."""
    biases = gate_bias_vector(key, cell, hidden, forget_bias, chrono, dtype)
    vectors = tuple(
        biases if vector.start is None else jnp.full(vector.gates * hidden, vector.start, dtype)
        for vector in cell.vectors
    )
    return biases[: cell.biased_gates * hidden], vectors


def forget_bias_vector(
    cell: Cell, hidden: int, forget_bias: jax.Array | float, dtype: Any
) -> jax.Array:
    """A bias [K] that is `forget_bias` in the forget gate's columns and 0 elsewhere."""
    b = jnp.zeros(len(cell.gates) * hidden, dtype)
    if cell.forget_gate is None:
        return b
    start = cell.gates.index(cell.forget_gate) * hidden
    return b.at[start : start + hidden].set(jnp.asarray(forget_bias, dtype))


def chrono_bias_vector(
    key: jax.Array, cell: Cell, hidden: int, longest: int, dtype: Any
) -> jax.Array:
    """A bias [K] with b_f = log(U[1, longest - 1]) and b_i = -b_f, 0 elsewhere.

    With inputs at 0 the forget gate's time scale 1 / (1 - f) is then uniform on [2, longest]
    steps. Cells without an input gate get b_f alone, cells without a forget gate nothing.

    Source: Tallec & Ollivier 2018 (arXiv:1804.11188).

    Args:
      longest: T_max, the longest time to be remembered, in steps, at least 2.

    Raises:
      ValueError: `longest` below 2.
    """
    if longest < 2:
        raise ValueError(f"chrono is {longest}; wanted T_max, at least 2 steps, or 0 for none")
    b_f = jnp.log(jax.random.uniform(key, (hidden,), dtype, 1, longest - 1))
    if cell.forget_gate is None:
        return jnp.zeros(len(cell.gates) * hidden, dtype)
    parts = {cell.forget_gate: b_f, "i": -b_f}
    return jnp.concatenate([parts.get(gate, jnp.zeros_like(b_f)) for gate in cell.gates])


def gate_bias_vector(
    key: jax.Array,
    cell: Cell,
    hidden: int,
    forget_bias: jax.Array | float,
    chrono: int,
    dtype: Any,
) -> jax.Array:
    """The bias [K] at the start: chrono's where T_max is given, else the forget bias."""
    if chrono:
        return chrono_bias_vector(key, cell, hidden, chrono, dtype)
    return forget_bias_vector(cell, hidden, forget_bias, dtype)
