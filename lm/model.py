"""A recurrent language model: embedding, a stack of cells, softmax.

e_t = E[w_t]      h_t = layers(e_1 .. e_t)      p(w_{t+1}) = softmax(h_t W + b)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams, gate_bias_vector, init_params
from lm.config import ModelConfig
from lm.recurrence import unroll

Carry = tuple[Any, ...]  # one state a layer


class Params(NamedTuple):
    """Parameters of a language model."""

    embedding: jax.Array  # [V, D]
    layers: tuple[CellParams, ...]
    softmax_w: jax.Array | None  # [H, V]; None: tied to the embedding
    softmax_b: jax.Array  # [V]


def init(
    key: jax.Array,
    config: ModelConfig,
    vocabulary: int,
    *,
    forget_bias: jax.Array | float | None = None,
    dtype: Any = jnp.float32,
) -> Params:
    """Parameters at the start of training.

    Args:
      key: a typed PRNG key.
      vocabulary: V.
      forget_bias: in place of `config.forget_bias`; may be traced.
      dtype: of every parameter.
    """
    bias = config.forget_bias if forget_bias is None else forget_bias
    key_embedding, key_layers, key_softmax, key_uniform = jax.random.split(key, 4)
    hidden = config.hidden_size
    cell = CELLS[config.cell]
    sizes = [config.embedding_size] + [hidden] * (config.layers - 1)
    layers = tuple(
        init_params(
            k,
            cell,
            size,
            hidden,
            forget_bias=bias,
            recurrent_gain=config.recurrent_gain,
            chrono=config.chrono,
            dtype=dtype,
        )
        for k, size in zip(jax.random.split(key_layers, config.layers), sizes, strict=True)
    )
    embedding = jax.random.normal(key_embedding, (vocabulary, config.embedding_size), dtype)
    # As softmax weights, embeddings of standard deviation 1 would start far from uniform.
    scale = config.input_scale / (config.embedding_size**0.5 if config.tied else 1.0)
    softmax_w = jax.random.normal(key_softmax, (hidden, vocabulary), dtype) / hidden**0.5
    params = Params(
        embedding * scale,
        layers,
        None if config.tied else softmax_w,
        jnp.zeros(vocabulary, dtype),
    )
    if config.init == "uniform":
        return init_uniform(key_uniform, cell, params, config.init_range, bias, config.chrono)
    return params


def init_uniform(
    key: jax.Array,
    cell: Cell,
    like: Params,
    bound: float,
    forget_bias: jax.Array | float,
    chrono: int = 0,
) -> Params:
    """Every weight from U(-bound, bound), gate biases added. Source: Zaremba et al. 2014."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    bias_keys = jax.random.split(jax.random.fold_in(key, len(leaves)), len(like.layers))
    drawn = jax.tree.unflatten(
        treedef,
        [
            jax.random.uniform(k, leaf.shape, leaf.dtype, -bound, bound)
            for k, leaf in zip(keys, leaves, strict=True)
        ],
    )
    layers = tuple(
        layer._replace(
            b=layer.b
            + gate_bias_vector(k, cell, layer.w_h.shape[0], forget_bias, chrono, layer.b.dtype)
        )
        for k, layer in zip(bias_keys, drawn.layers, strict=True)
    )
    return drawn._replace(layers=layers)


def init_carry(config: ModelConfig, batch: int, dtype: Any = jnp.float32) -> Carry:
    """The zero state of every layer."""
    cell = CELLS[config.cell]
    return tuple(cell.init_state(batch, config.hidden_size, dtype) for _ in range(config.layers))


def apply(
    config: ModelConfig,
    params: Params,
    carry: Carry,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    gauges: tuple[jax.Array, ...] | None = None,
) -> tuple[Carry, jax.Array]:
    """Hidden states of the last layer.

    Args:
      carry: one state a layer.
      tokens: int [T, B], each in [0, V).
      mask: bool [T, B], False on padding, or None.
      gauges: zeros [T] for each layer, whose gradients are log ||dL/dz_t||; or None.

    Returns:
      (carry after the last token, h [T, B, H]).
    """
    cell = CELLS[config.cell]
    h = jnp.take(params.embedding, tokens, axis=0)  # [T, B, D]
    last = []
    readings = gauges or (None,) * len(params.layers)
    for layer, state, gauge in zip(params.layers, carry, readings, strict=True):
        state, h = unroll(cell, layer, state, h, mask, gauge=gauge)
        last.append(state)
    return tuple(last), h


def softmax_weights(params: Params) -> jax.Array:
    """W of the softmax, [H, V]."""
    return params.embedding.T if params.softmax_w is None else params.softmax_w


def logits(params: Params, h: jax.Array) -> jax.Array:
    """Scores of the next token. h [..., H] -> [..., V]."""
    scores = h.reshape(-1, h.shape[-1]) @ softmax_weights(params) + params.softmax_b[None, :]
    return scores.reshape(*h.shape[:-1], -1)


def count_parameters(params: Params) -> int:
    """How many numbers a model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
