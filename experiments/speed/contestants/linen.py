"""Flax linen: nn.RNN over its fastest cell of each kind, a Dense for the softmax.

Its OptimizedLSTMCell has one product for four gates; of the GRU there is GRUCell alone.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.speed.contestants.program import (
    Arrays,
    JaxProgram,
    Layer,
    Network,
    make_layer_program,
    make_step_program,
)
from experiments.speed.work import Work

CELLS: dict[str, Any] = {"rnn": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
GATES = {"rnn": "h", "gru": "rzn", "lstm": "ifgo"}


class Model(nn.Module):
    """Embedding, recurrent layers, softmax. Tokens [T, B] -> logits [T B, V]."""

    cell: str
    hidden: int
    layers: int
    vocabulary: int

    @nn.compact
    def __call__(self, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        h = nn.Embed(self.vocabulary, self.hidden, name="encoder")(tokens)
        last = []
        for k in range(self.layers):
            rnn = nn.RNN(
                CELLS[self.cell](self.hidden, name=f"cell_{k}"),
                time_major=True,
                return_carry=True,
                name=f"rnn_{k}",
            )
            state, h = rnn(h, initial_carry=carry[k])
            last.append(state)
        logits = nn.Dense(self.vocabulary, name="decoder")(h.reshape(-1, self.hidden))
        return tuple(last), logits


def make_step(work: Work, weights: Arrays) -> JaxProgram:
    """A training step of the model above."""
    size = work.size
    model = Model(work.cell, size.hidden, size.layers, size.vocabulary)
    params: dict[str, Any] = {
        "encoder": {"embedding": weights["encoder.weight"]},
        "decoder": {"kernel": weights["decoder.weight"].T, "bias": weights["decoder.bias"]},
    }
    for k in range(size.layers):
        params[f"cell_{k}"] = import_cell(work.cell, weights, k)

    def forward(params: Any, carry: Any, tokens: Any) -> tuple[Any, Any]:
        carry, logits = model.apply({"params": params}, carry, tokens)
        return logits, carry

    def export(params: Any) -> Arrays:
        arrays = {
            "encoder.weight": np.asarray(params["encoder"]["embedding"]),
            "decoder.weight": np.asarray(params["decoder"]["kernel"]).T,
            "decoder.bias": np.asarray(params["decoder"]["bias"]),
        }
        for k in range(size.layers):
            arrays |= export_cell(work.cell, params[f"cell_{k}"], k)
        return arrays

    carry = tuple(zero_carry(work) for _ in range(size.layers))
    return make_step_program(Network(params, carry, forward, export), work)


def make_layer(work: Work, weights: Arrays) -> JaxProgram:
    """nn.RNN alone."""
    rnn = nn.RNN(CELLS[work.cell](work.size.hidden), time_major=True)

    def forward(params: Any, carry: Any, x: Any) -> Any:
        return rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)

    params = import_cell(work.cell, weights, 0)
    layer = Layer(params, zero_carry(work), forward, lambda g: export_cell(work.cell, g, 0))
    return make_layer_program(layer, work)


def zero_carry(work: Work) -> Any:
    """The state before the first token; an LSTM's is (c, h)."""
    zero = np.zeros((work.size.batch, work.size.hidden), np.float32)
    return (zero, zero) if work.cell == "lstm" else zero


def import_cell(cell: str, weights: Arrays, k: int) -> dict[str, Any]:
    """The parameters of layer k: a Dense for each gate's input and recurrent product."""
    gates = GATES[cell]
    w_x, w_h, b, b_h = (
        np.split(weights[f"rnn.{part}_l{k}"], len(gates))
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    if cell == "rnn":
        return {"i": {"kernel": w_x[0].T, "bias": b[0]}, "h": {"kernel": w_h[0].T}}
    params: dict[str, Any] = {}
    for n, gate in enumerate(gates):
        params[f"i{gate}"] = {"kernel": w_x[n].T}
        params[f"h{gate}"] = {"kernel": w_h[n].T}
        params[f"{'h' if cell == 'lstm' else 'i'}{gate}"]["bias"] = b[n]
    if cell == "gru":
        params["hn"]["bias"] = b_h[2]
    return params


def export_cell(cell: str, params: Any, k: int) -> Arrays:
    """The inverse of `import_cell`."""
    if cell == "rnn":
        params = {"ih": params["i"], "hh": params["h"]}
    gates = GATES[cell]
    biased = "h" if cell == "lstm" else "i"
    stack = lambda side, part: np.concatenate(  # noqa: E731
        [np.asarray(params[f"{side}{gate}"][part]).T for gate in gates]
    )
    arrays = {
        f"rnn.weight_ih_l{k}": stack("i", "kernel"),
        f"rnn.weight_hh_l{k}": stack("h", "kernel"),
        f"rnn.bias_ih_l{k}": stack(biased, "bias"),
    }
    if cell == "gru":
        arrays[f"rnn.bias_hn_l{k}"] = np.asarray(params["hn"]["bias"])
    return arrays
