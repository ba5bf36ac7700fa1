"""A recurrent language model: embedding, a stack of cells, softmax.

e_t = E[w_t]      h_t = layers(e_1 .. e_t)      p(w_{t+1}) = softmax(h_t W + b)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams, gate_bias_vector, init_params
from lm.config import ModelConfig
from lm.recurrence import drop, unroll
from lm.regularize import NO_MASKS, Masks

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
    cell = CELLS[config.cell]
    sizes = (config.embedding_size, *config.layer_sizes)
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
        for k, size, hidden in zip(
            jax.random.split(key_layers, config.layers), sizes[:-1], sizes[1:], strict=True
        )
    )
    embedding = jax.random.normal(key_embedding, (vocabulary, config.embedding_size), dtype)
    # As softmax weights, embeddings of standard deviation 1 would start far from uniform.
    scale = config.input_scale / (config.embedding_size**0.5 if config.tied else 1.0)
    softmax_w = jax.random.normal(key_softmax, (sizes[-1], vocabulary), dtype) / sizes[-1] ** 0.5
    params = Params(
        embedding * scale,
        layers,
        None if config.tied else softmax_w,
        jnp.zeros(vocabulary, dtype),
    )
    if config.init == "scaled":
        return params
    drawn = init_uniform(key_uniform, cell, params, config, bias)
    if config.init == "uniform":
        return drawn
    return drawn._replace(softmax_b=jnp.zeros_like(params.softmax_b))


def init_uniform(
    key: jax.Array, cell: Cell, like: Params, config: ModelConfig, forget_bias: jax.Array | float
) -> Params:
    """Every weight from U(-r, r), gate biases added.

    r is `config.init_range` (Zaremba et al. 2014), for init=pytorch in the recurrent layers
    H^-1/2, and their bias the sum of two (PyTorch's nn.LSTM has b_ih and b_hh).
    """
    pytorch = config.init == "pytorch"

    def bound(layer: CellParams) -> float:
        return float(layer.w_h.shape[0] ** -0.5) if pytorch else config.init_range

    def fill(tree: Any, r: float) -> Any:
        return jax.tree.map(lambda _: r, tree)

    bounds = fill(like, config.init_range)._replace(
        layers=tuple(fill(layer, bound(layer)) for layer in like.layers)
    )
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = jax.tree.unflatten(
        treedef,
        [
            jax.random.uniform(k, leaf.shape, leaf.dtype, -r, r)
            for k, leaf, r in zip(keys, leaves, jax.tree.leaves(bounds), strict=True)
        ],
    )
    bias_keys = jax.random.split(jax.random.fold_in(key, len(leaves)), len(like.layers))

    def start_bias(layer: CellParams, k: jax.Array) -> CellParams:
        b, r = layer.b, bound(layer)
        if pytorch:
            b += jax.random.uniform(jax.random.fold_in(k, 1), b.shape, b.dtype, -r, r)
        hidden = layer.w_h.shape[0]
        b += gate_bias_vector(k, cell, hidden, forget_bias, config.chrono, b.dtype)
        return layer._replace(b=b)

    layers = tuple(start_bias(*pair) for pair in zip(drawn.layers, bias_keys, strict=True))
    return drawn._replace(layers=layers)


def init_carry(config: ModelConfig, batch: int, dtype: Any = jnp.float32) -> Carry:
    """The zero state of every layer."""
    cell = CELLS[config.cell]
    return tuple(cell.init_state(batch, hidden, dtype) for hidden in config.layer_sizes)


def apply(
    config: ModelConfig,
    params: Params,
    carry: Carry,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    gauges: tuple[jax.Array, ...] | None = None,
    masks: Masks = NO_MASKS,
) -> tuple[Carry, jax.Array]:
    """Hidden states of the last layer.

    Args:
      carry: one state a layer.
      tokens: int [T, B], each in [0, V).
      mask: bool [T, B], False on padding, or None.
      gauges: zeros [T] for each layer, whose gradients are log ||dL/dz_t||; or None.
      masks: what training drops; `masks.output` is left to the caller, since the penalties see
        the output with and without it.

    Returns:
      (carry after the last token, h [T, B, H]).
    """
    cell = CELLS[config.cell]
    h = jnp.take(params.embedding, tokens, axis=0)  # [T, B, D]
    if masks.words is not None:
        h = h * jnp.take(masks.words, tokens)[..., None]
    h = drop(h, masks.input)
    last = []
    nothing = (None,) * config.layers
    between = (*masks.hidden, None) if masks.hidden else nothing
    for layer, state, gauge, hidden_mask, state_mask, weight_mask in zip(
        params.layers,
        carry,
        gauges or nothing,
        between,
        masks.state or nothing,
        masks.weights or nothing,
        strict=True,
    ):
        dropped = layer._replace(w_h=drop(layer.w_h, weight_mask))
        state, h = unroll(cell, dropped, state, h, mask, gauge=gauge, state_mask=state_mask)
        h = drop(h, hidden_mask)
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
