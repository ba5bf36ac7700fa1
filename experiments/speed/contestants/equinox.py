"""Equinox: its LSTMCell and GRUCell under lax.scan, one row each, over the rows of a batch by vmap.

Equinox has no vanilla recurrent cell. The step is compiled by jax.jit on the partitioned model,
which Equinox's own guide to low overhead gives in place of filter_jit.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.contestants.linen import zero_carry
from experiments.speed.contestants.program import (
    Arrays,
    JaxProgram,
    Layer,
    Network,
    make_layer_program,
    make_step_program,
)
from experiments.speed.work import Work


class Model(eqx.Module):
    """Embedding, recurrent layers, softmax. Tokens [T, B] -> logits [T B, V]."""

    encoder: eqx.nn.Embedding
    layers: list[Any]
    decoder: eqx.nn.Linear

    def __call__(self, carry: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        h = jax.vmap(jax.vmap(self.encoder))(tokens)
        last = []
        for cell, state in zip(self.layers, carry, strict=True):
            new, h = unroll(cell, state, h)
            last.append(new)
        return jax.vmap(self.decoder)(h.reshape(-1, h.shape[-1])), tuple(last)


def unroll(cell: Any, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """A cell over x [T, B, D]."""

    def step(state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        state = jax.vmap(cell)(x_t, state)
        return state, state[0] if isinstance(cell, eqx.nn.LSTMCell) else state

    return jax.lax.scan(step, state, x)


def make_cell(work: Work, weights: Arrays, k: int) -> Any:
    """The cell of layer k; shapes and gate order are PyTorch's."""
    kind: Any = eqx.nn.LSTMCell if work.cell == "lstm" else eqx.nn.GRUCell
    hidden = work.size.hidden
    cell = eqx.filter_eval_shape(kind, hidden, hidden, key=jax.random.key(0))
    arrays = [weights[f"rnn.{part}_l{k}"] for part in ("weight_ih", "weight_hh", "bias_ih")]
    fields = ["weight_ih", "weight_hh", "bias"]
    if work.cell == "gru":
        fields.append("bias_n")
        arrays.append(weights[f"rnn.bias_hh_l{k}"][2 * hidden :])
    return eqx.tree_at(lambda c: [getattr(c, f) for f in fields], cell, list(map(own, arrays)))


def own(array: np.ndarray) -> jax.Array:
    return jnp.array(array, copy=True)


def export_cell(cell: Any, k: int) -> Arrays:
    """The inverse of `make_cell`."""
    arrays = {
        f"rnn.weight_ih_l{k}": np.asarray(cell.weight_ih),
        f"rnn.weight_hh_l{k}": np.asarray(cell.weight_hh),
        f"rnn.bias_ih_l{k}": np.asarray(cell.bias),
    }
    if isinstance(cell, eqx.nn.GRUCell):
        arrays[f"rnn.bias_hn_l{k}"] = np.asarray(cell.bias_n)
    return arrays


def make_step(work: Work, weights: Arrays) -> JaxProgram:
    """A training step of the model above."""
    size = work.size
    encoder = eqx.nn.Embedding(weight=own(weights["encoder.weight"]))
    decoder = eqx.filter_eval_shape(
        eqx.nn.Linear, size.hidden, size.vocabulary, key=jax.random.key(0)
    )
    decoder = eqx.tree_at(
        lambda linear: (linear.weight, linear.bias),
        decoder,
        (own(weights["decoder.weight"]), own(weights["decoder.bias"])),
    )
    model = Model(encoder, [make_cell(work, weights, k) for k in range(size.layers)], decoder)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def forward(params: Any, carry: Any, tokens: Any) -> tuple[Any, Any]:
        return eqx.combine(params, static)(carry, tokens)

    def export(params: Any) -> Arrays:
        arrays = {
            "encoder.weight": np.asarray(params.encoder.weight),
            "decoder.weight": np.asarray(params.decoder.weight),
            "decoder.bias": np.asarray(params.decoder.bias),
        }
        for k, cell in enumerate(params.layers):
            arrays |= export_cell(cell, k)
        return arrays

    carry = tuple(start(work) for _ in range(size.layers))
    return make_step_program(Network(params, carry, forward, export), work)


def make_layer(work: Work, weights: Arrays) -> JaxProgram:
    """A cell under lax.scan alone."""
    params, static = eqx.partition(make_cell(work, weights, 0), eqx.is_inexact_array)

    def forward(params: Any, carry: Any, x: Any) -> Any:
        return unroll(eqx.combine(params, static), carry, x)[1]

    return make_layer_program(
        Layer(params, start(work), forward, lambda gradient: export_cell(gradient, 0)), work
    )


def start(work: Work) -> Any:
    """The zero state; an LSTM's is (h, c)."""
    return zero_carry(work)
