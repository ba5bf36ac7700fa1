"""The LSTM with a gate left out, or two coupled: what is each gate for?

    no input gate    i = 1           c_t = f * c_{t-1} + g             gates f, o, g
    no forget gate   f = 1           c_t = c_{t-1} + i * g             gates i, o, g
    coupled          i = 1 - f       c_t = f * c_{t-1} + (1 - f) * g   gates f, o, g

and h_t = o * tanh(c_t) in all of them. Without a forget gate it is the LSTM as Hochreiter &
Schmidhuber 1997 published it.

Source: Greff et al. 2015 (arXiv:1503.04069), variants NIG, NFG and CIFG, without peepholes.
There CIFG has the weights of the input gate, f = 1 - i; here those of the forget gate: the same
cell up to their sign, in which a forget bias means what it means in the LSTM.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, Vectors, make_cell, split_gates
from lm.cells.lstm import LSTMState


def activate(names: str, z: jax.Array, u: jax.Array) -> dict[str, jax.Array]:
    """The gates by name, each [B, H]: g a tanh, the others sigmoids."""
    parts = split_gates(z + u, len(names))
    return {
        name: jnp.tanh(a) if name == "g" else jax.nn.sigmoid(a)
        for name, a in zip(names, parts, strict=True)
    }


def no_input_gate(vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array) -> LSTMState:
    """c_t = f * c_{t-1} + g: every candidate is written in full."""
    gates = activate("fog", z, u)
    c = gates["f"] * state.c + gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def no_forget_gate(vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array) -> LSTMState:
    """c_t = c_{t-1} + i * g: nothing is ever forgotten, the carousel's factor is 1."""
    gates = activate("iog", z, u)
    c = state.c + gates["i"] * gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def coupled(vectors: Vectors, state: LSTMState, z: jax.Array, u: jax.Array) -> LSTMState:
    """c_t = f * c_{t-1} + (1 - f) * g: a running average, never beyond 1 once within it."""
    gates = activate("fog", z, u)
    c = gates["f"] * state.c + (1 - gates["f"]) * gates["g"]
    return LSTMState(c, gates["o"] * jnp.tanh(c))


def make_variant(name: str, gates: str, gate: Any, forget_gate: str | None) -> Cell:
    """An LSTM variant; its derivative is taken automatically."""
    return make_cell(
        name,
        tuple(gates),
        LSTMState,
        gate,
        activations=lambda vectors, state, z, u: activate(gates, z, u),
        forget_gate=forget_gate,
        learning_rate=20.0,
    )


NO_INPUT_GATE = make_variant("LSTM without input gate", "fog", no_input_gate, "f")
NO_FORGET_GATE = make_variant("LSTM without forget gate", "iog", no_forget_gate, None)
COUPLED = make_variant("LSTM with coupled gates", "fog", coupled, "f")
