"""A recurrent language model: embedding, a stack of cells, softmax.

e_t = E[w_t]      h_t = layers(e_1 .. e_t)      p(w_{t+1}) = softmax(h_t W + b)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.adaptive_softmax import AdaptiveWeights, choose_cutoffs, init_tails, log_probabilities
from lm.alignment import align_layer, widen
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams, init_params, start_vectors
from lm.config import ModelConfig
from lm.embedding import is_table_cheaper, project_tokens, take_rows
from lm.recurrence import project, unroll_inputs
from lm.regularize import NO_MASKS, Masks
from lm.scans import drop

Carry = tuple[Any, ...]  # one state a layer


class Params(NamedTuple):
    """Parameters of a language model."""

    embedding: jax.Array  # [V, D]
    layers: tuple[CellParams, ...]
    softmax_w: jax.Array | AdaptiveWeights | None  # [H, V]; None: tied to the embedding
    softmax_b: jax.Array  # [V]; of an adaptive softmax its head's


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
            recurrent_init=config.recurrent_init,
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
    params = Params(
        embedding * scale, layers, *init_softmax(key_softmax, config, vocabulary, dtype)
    )
    if config.init == "scaled":
        return params
    drawn = init_uniform(key_uniform, cell, params, config, bias)
    if config.init == "uniform":
        return drawn
    # A bias, of a cluster's too, starts at 0.
    w, b = jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf) if leaf.ndim == 1 else leaf,
        (drawn.softmax_w, drawn.softmax_b),
    )
    return drawn._replace(softmax_w=w, softmax_b=b)


def init_softmax(
    key: jax.Array, config: ModelConfig, vocabulary: int, dtype: Any
) -> tuple[jax.Array | AdaptiveWeights | None, jax.Array]:
    """(W, b) at the start of training."""
    hidden = config.layer_sizes[-1]

    def scaled(key: jax.Array, entries: int) -> jax.Array:
        return jax.random.normal(key, (hidden, entries), dtype) / hidden**0.5

    cutoffs: tuple[int, ...] = ()
    if config.softmax == "adaptive":
        cutoffs = choose_cutoffs(config.cutoffs, vocabulary)
    if not cutoffs:
        return None if config.tied else scaled(key, vocabulary), jnp.zeros(vocabulary, dtype)
    key_head, key_tails = jax.random.split(key)
    tails = init_tails(key_tails, hidden, vocabulary, cutoffs, config.tail_factor, dtype)
    entries = cutoffs[0] + len(tails)
    return AdaptiveWeights(scaled(key_head, entries), tails), jnp.zeros(entries, dtype)


def init_uniform(
    key: jax.Array, cell: Cell, like: Params, config: ModelConfig, forget_bias: jax.Array | float
) -> Params:
    """Every weight from U(-r, r), gate biases and what else does not start at 0 added.

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
        b, r, hidden = layer.b, bound(layer), layer.w_h.shape[0]
        if pytorch:
            b += jax.random.uniform(jax.random.fold_in(k, 1), b.shape, b.dtype, -r, r)
        start = start_vectors(k, cell, hidden, forget_bias, config.chrono, b.dtype)
        b, vectors = jax.tree.map(jnp.add, (b, layer.vectors), start)
        return layer._replace(b=b, vectors=vectors)

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
    cell, dtype = CELLS[config.cell], config.product_dtype
    last: list[Any] = []
    nothing = (None,) * config.layers
    between = (*masks.hidden, None) if masks.hidden else nothing
    h = None
    for layer, state, gauge, hidden_mask, state_mask, weight_mask in zip(
        params.layers,
        carry,
        gauges or nothing,
        between,
        masks.state or nothing,
        masks.weights or nothing,
        strict=True,
    ):
        layer = align_layer(cell, layer._replace(w_h=drop(layer.w_h, weight_mask)))
        if h is None:
            z = first_input_products(params.embedding, layer, tokens, masks, dtype)
        else:
            z = project(h, layer.w_x, layer.b, dtype)
        state, h = unroll_inputs(
            cell, layer, state, z, mask, gauge=gauge, state_mask=state_mask, dtype=dtype
        )
        h = drop(h, hidden_mask)
        last.append(state)
    assert h is not None
    return tuple(last), h


def first_input_products(
    embedding: jax.Array, layer: CellParams, tokens: jax.Array, masks: Masks, dtype: Any = None
) -> jax.Array:
    """z of the first layer, by way of each token or of each word. Tokens [T, B] -> [T, B, K]."""
    words = masks.words
    # With a mask of its own, a token's embedding is no longer its word's.
    if masks.input is None and is_table_cheaper(embedding.shape[0], tokens.size):
        embedding = drop(embedding, None if words is None else words[:, None])
        embedding = widen(embedding, len(layer.w_x))
        return project_tokens(embedding, layer.w_x, layer.b, tokens, dtype)
    e = take_rows(embedding, tokens)  # [T, B, D]
    e = drop(e, None if words is None else jnp.take(words, tokens)[..., None])
    return project(drop(e, masks.input), layer.w_x, layer.b, dtype)


def softmax_weights(params: Params) -> jax.Array | AdaptiveWeights:
    """W of the softmax, [H, V], or an adaptive softmax's weights."""
    return params.embedding.T if params.softmax_w is None else params.softmax_w


def logits(params: Params, h: jax.Array) -> jax.Array:
    """Scores of the next token, of an adaptive softmax log probabilities. h [..., H] -> [..., V].

    All at once: `lm.softmax` has the loss without.
    """
    rows, w = h.reshape(-1, h.shape[-1]), softmax_weights(params)
    if isinstance(w, AdaptiveWeights):
        scores = log_probabilities(rows, w, params.softmax_b)
    else:
        scores = rows @ w + params.softmax_b[None, :]
    return scores.reshape(*h.shape[:-1], -1)


def count_parameters(params: Params) -> int:
    """How many numbers a model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
