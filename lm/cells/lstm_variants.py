"""The LSTM taken apart: one piece left out, tied to another, or added. What is each for?

The LSTM:  i, f, o = sigmoid(a)   g = tanh(a)   c_t = f * c_{t-1} + i * g   h_t = o * tanh(c_t)

with a = z + u. From it differ

    nig       no input gate           i = 1                                   gates f, o, g
    nfg       no forget gate          f = 1                                   gates i, o, g
    nog       no output gate          o = 1                                   gates i, f, g
    niaf      no input activation     g = a_g                                 gates i, f, o, g
    noaf      no output activation    h_t = o * c_t                           gates i, f, o, g
    cifg      coupled                 i = 1 - f                               gates f, o, g
    peephole  gates see the cell      i, f: a + p * c_{t-1}   o: a + p * c_t  gates i, f, o, g
    fgr       gates see the gates     a + [i_{t-1}, f_{t-1}, o_{t-1}] R       gates i, f, o, g

Without a forget gate it is the LSTM as Hochreiter & Schmidhuber 1997 published it; the peepholes
are Gers, Schraudolph & Schmidhuber's 2002.

Source: Greff et al. 2015 (arXiv:1503.04069), whose names these are. Their baseline has peepholes,
and so have their variants; ours is the LSTM without (their NP), and each variant is one step from
it. Their CIFG has the weights of the input gate, f = 1 - i; here those of the forget gate: the
same cell up to their sign, in which a forget bias means what it means in the LSTM.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, Feedback, Vector, Vectors, make_sum_cell, split_gates
from lm.cells.lstm import LSTMState

Gates = dict[str, jax.Array]  # by name, each [B, H]


def activate(names: str, a: jax.Array) -> Gates:
    """The gates from their pre-activations [B, K]: g a tanh, the others sigmoids."""
    parts = split_gates(a, len(names))
    return {
        name: jnp.tanh(part) if name == "g" else jax.nn.sigmoid(part)
        for name, part in zip(names, parts, strict=True)
    }


def no_input_gate(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """c_t = f * c_{t-1} + g: every candidate is written in full."""
    gates = activate("fog", a)
    c = gates["f"] * state.c + gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def no_forget_gate(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """c_t = c_{t-1} + i * g: nothing is ever forgotten, the carousel's factor is 1."""
    gates = activate("iog", a)
    c = state.c + gates["i"] * gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def no_output_gate(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """h_t = tanh(c_t): what is stored is always shown."""
    gates = activate("ifg", a)
    c = gates["f"] * state.c + gates["i"] * gates["g"]
    return LSTMState(c, jnp.tanh(c))


def linear_candidate(a: jax.Array) -> Gates:
    """i, f, o and a candidate without its tanh."""
    return activate("ifo", a[..., : 3 * a.shape[-1] // 4]) | {"g": split_gates(a, 4)[3]}


def no_input_activation(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """g = a_g: candidates of any size are written."""
    gates = linear_candidate(a)
    c = gates["f"] * state.c + gates["i"] * gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def no_output_activation(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """h_t = o * c_t: the output grows with the cell state, which has no bound."""
    gates = activate("ifog", a)
    c = gates["f"] * state.c + gates["i"] * gates["g"]
    return LSTMState(c, gates["o"] * c)


def coupled(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """c_t = f * c_{t-1} + (1 - f) * g: a running average, never beyond 1 once within it."""
    gates = activate("fog", a)
    c = gates["f"] * state.c + (1 - gates["f"]) * gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def peephole_gates(vectors: Vectors, state: LSTMState, a: jax.Array) -> tuple[Gates, jax.Array]:
    """(gates, c_t): the input and forget gate see c_{t-1}, the output gate c_t."""
    p_i, p_f, p_o = (p[None, :] for p in vectors)
    a_i, a_f, a_o, a_g = split_gates(a, 4)
    i = jax.nn.sigmoid(a_i + p_i * state.c)
    f = jax.nn.sigmoid(a_f + p_f * state.c)
    g = jnp.tanh(a_g)
    c = f * state.c + i * g
    return {"i": i, "f": f, "o": jax.nn.sigmoid(a_o + p_o * c), "g": g}, c


def peephole(vectors: Vectors, state: LSTMState, a: jax.Array) -> LSTMState:
    """The gates know what is stored, and not only what is shown of it."""
    gates, c = peephole_gates(vectors, state, a)
    return LSTMState(c, gates["o"] * jnp.tanh(c))


class GateState(NamedTuple):
    """An LSTM's state and what its gates were, each [B, H]."""

    c: jax.Array
    i: jax.Array
    f: jax.Array
    o: jax.Array
    h: jax.Array


def full_gate_recurrence(vectors: Vectors, state: GateState, a: jax.Array) -> GateState:
    """An LSTM that leaves its gates in the state, for the product to read; 0 before the first."""
    gates = activate("ifog", a)
    c = gates["f"] * state.c + gates["i"] * gates["g"]
    return GateState(c, gates["i"], gates["f"], gates["o"], gates["o"] * jnp.tanh(c))


def make_variant(
    name: str,
    gates: str,
    equations: Callable[[Vectors, Any, jax.Array], Any],
    look: Callable[[Vectors, Any, jax.Array], Gates] | None = None,
    **options: Any,
) -> Cell:
    """An LSTM variant; its derivative is taken automatically.

    Args:
      look: (vectors, state, a) -> the gates by name, where they are not `activate`'s.
    """

    def activations(vectors: Vectors, state: Any, z: jax.Array, u: jax.Array) -> Gates:
        return activate(gates, z + u) if look is None else look(vectors, state, z + u)

    return make_sum_cell(
        name,
        tuple(gates),
        options.pop("state", LSTMState),
        equations,
        activations=activations,
        forget_gate="f" if "f" in gates else None,
        learning_rate=20.0,
        **options,
    )


NO_INPUT_GATE = make_variant("LSTM without input gate", "fog", no_input_gate)
NO_FORGET_GATE = make_variant("LSTM without forget gate", "iog", no_forget_gate)
NO_OUTPUT_GATE = make_variant("LSTM without output gate", "ifg", no_output_gate)
NO_INPUT_ACTIVATION = make_variant(
    "LSTM without input activation",
    "ifog",
    no_input_activation,
    lambda vectors, state, a: linear_candidate(a),
)
NO_OUTPUT_ACTIVATION = make_variant("LSTM without output activation", "ifog", no_output_activation)
COUPLED = make_variant("LSTM with coupled gates", "fog", coupled)
PEEPHOLE = make_variant(
    "LSTM with peepholes",
    "ifog",
    peephole,
    lambda vectors, state, a: peephole_gates(vectors, state, a)[0],
    vectors=(Vector("p_i"), Vector("p_f"), Vector("p_o")),
)
FULL_GATE_RECURRENCE = make_variant(
    "LSTM with full gate recurrence",
    "ifog",
    full_gate_recurrence,
    state=GateState,
    feedback=tuple(Feedback(gate, gates=3) for gate in "ifo"),
)
