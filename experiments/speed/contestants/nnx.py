"""Flax nnx: nnx.RNN over its fastest cells, split into graph and state outside the compiled step.

That split is what Flax's guide gives for small models, whose step nnx.jit would spend in Python.
Its GRUCell has one bias vector fewer than the others' (none in the recurrent product).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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

CELLS: dict[str, Any] = {"rnn": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}


class Model(nnx.Module):
    """Embedding, recurrent layers, softmax. Tokens [T, B] -> logits [T B, V]."""

    def __init__(self, work: Work, rngs: nnx.Rngs):
        size = work.size
        self.encoder = nnx.Embed(size.vocabulary, size.hidden, rngs=rngs)
        self.layers = nnx.List([make_rnn(work, rngs) for _ in range(size.layers)])
        self.decoder = nnx.Linear(size.hidden, size.vocabulary, rngs=rngs)

    def __call__(self, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        h = self.encoder(tokens)
        last = []
        for rnn, state in zip(self.layers, carry, strict=True):
            new, h = rnn(h, initial_carry=state)
            last.append(new)
        return tuple(last), self.decoder(h.reshape(-1, h.shape[-1]))


def make_rnn(work: Work, rngs: nnx.Rngs) -> Any:
    hidden = work.size.hidden
    return nnx.RNN(
        CELLS[work.cell](hidden, hidden, rngs=rngs), time_major=True, return_carry=True, rngs=rngs
    )


def split(make: Any, put: Any) -> tuple[Any, Any, Any]:
    """(graph, parameters, the rest) of a module, never initialised: `put` fills it."""
    module = nnx.eval_shape(make)
    put(module)
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, rest = parts
    return graph, params, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), rest)


def make_step(work: Work, weights: Arrays) -> JaxProgram:
    """A training step of the model above."""
    size = work.size

    def put(model: Any) -> None:
        model.encoder.embedding = nnx.Param(jnp.asarray(weights["encoder.weight"]))
        model.decoder.kernel = nnx.Param(jnp.asarray(weights["decoder.weight"].T))
        model.decoder.bias = nnx.Param(jnp.asarray(weights["decoder.bias"]))
        for k in range(size.layers):
            import_cell(work.cell, model.layers[k].cell, weights, k)

    graph, params, rest = split(lambda: Model(work, nnx.Rngs(0)), put)

    def forward(params: Any, carry: Any, tokens: Any) -> tuple[Any, Any]:
        carry, logits = nnx.merge(graph, params, rest)(carry, tokens)
        return logits, carry

    def export(params: Any) -> Arrays:
        model: Any = nnx.merge(graph, params, rest)
        arrays = {
            "encoder.weight": np.asarray(model.encoder.embedding[...]),
            "decoder.weight": np.asarray(model.decoder.kernel[...]).T,
            "decoder.bias": np.asarray(model.decoder.bias[...]),
        }
        for k in range(size.layers):
            arrays |= export_cell(work.cell, model.layers[k].cell, k)
        return arrays

    carry = tuple(zero_carry(work) for _ in range(size.layers))
    return make_step_program(Network(params, carry, forward, export), work)


def make_layer(work: Work, weights: Arrays) -> JaxProgram:
    """nnx.RNN alone."""
    graph, params, rest = split(
        lambda: make_rnn(work, nnx.Rngs(0)),
        lambda rnn: import_cell(work.cell, rnn.cell, weights, 0),
    )

    def forward(params: Any, carry: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest)(x, initial_carry=carry)[1]

    def export(params: Any) -> Arrays:
        rnn: Any = nnx.merge(graph, params, rest)
        return export_cell(work.cell, rnn.cell, 0)

    return make_layer_program(Layer(params, zero_carry(work), forward, export), work)


def linears(cell: str, module: Any) -> tuple[Any, Any, Any]:
    """(input product, recurrent product, the one of them that has the bias)."""
    return module.dense_i, module.dense_h, module.dense_h if cell == "lstm" else module.dense_i


def import_cell(cell: str, module: Any, weights: Arrays, k: int) -> None:
    """Put layer k into a cell; the order of gates is PyTorch's."""
    dense_i, dense_h, biased = linears(cell, module)
    dense_i.kernel = nnx.Param(jnp.asarray(weights[f"rnn.weight_ih_l{k}"].T))
    dense_h.kernel = nnx.Param(jnp.asarray(weights[f"rnn.weight_hh_l{k}"].T))
    biased.bias = nnx.Param(jnp.asarray(weights[f"rnn.bias_ih_l{k}"]))


def export_cell(cell: str, module: Any, k: int) -> Arrays:
    """The inverse of `import_cell`."""
    dense_i, dense_h, biased = linears(cell, module)
    return {
        f"rnn.weight_ih_l{k}": np.asarray(dense_i.kernel[...]).T,
        f"rnn.weight_hh_l{k}": np.asarray(dense_h.kernel[...]).T,
        f"rnn.bias_ih_l{k}": np.asarray(biased.bias[...]),
    }
