"""Masks and penalties that keep a model from learning its training text by heart.

All masks of a batch are drawn at once, from one key, as a record that `model.apply` multiplies
by. Evaluation draws none, so nothing can be left on there. An entry of a mask is 0 with
probability `rate` and 1 / (1 - rate) otherwise: what is masked keeps its mean.

    variational   m [1, B, D]    one mask for all steps of a row (Gal & Ghahramani 2016)
    independent   m [T, B, D]    a fresh one each step (Zaremba et al. 2014)
    words         m [V]          whole words of the embedding (Gal & Ghahramani 2016)
    state         m [B, H]       h_{t-1} before the recurrent product, all steps (the same)
    weights       m [H, K]       recurrent weights, for the whole batch (Wan et al. 2013)

Sources: Zaremba, Sutskever & Vinyals 2014 (arXiv:1409.2329); Gal & Ghahramani 2016
(arXiv:1512.05287); Merity, Keskar & Socher 2017 (arXiv:1708.02182), who put all of them
together with the penalties AR and TAR of Merity, McCann & Socher 2017 (arXiv:1708.01009).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.cells import CELLS
from lm.config import ModelConfig, RegularizeConfig, is_off
from lm.mesh import total


class Masks(NamedTuple):
    """What one batch is multiplied by; None where nothing is dropped."""

    words: jax.Array | None = None  # [V]
    input: jax.Array | None = None  # [1 or T, B, D]
    hidden: tuple[jax.Array, ...] | None = None  # [1 or T, B, H] of each layer but the last
    output: jax.Array | None = None  # [1 or T, B, H]
    state: tuple[jax.Array, ...] | None = None  # [B, H] of each layer
    weights: tuple[jax.Array, ...] | None = None  # [H, K] of each layer


NO_MASKS = Masks()


def draw_mask(
    key: jax.Array, rate: float, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array | None:
    """0 with probability `rate`, which may be traced, else 1 / (1 - rate); None at rate 0."""
    if is_off(rate):
        return None
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, jnp.asarray(1 / (1 - rate), dtype), jnp.zeros((), dtype))


def draw_masks(
    key: jax.Array,
    config: RegularizeConfig,
    network: ModelConfig,
    vocabulary: int,
    time: int,
    batch: int,
) -> Masks:
    """The masks of one batch.

    Args:
      key: a typed PRNG key, for this batch alone.
      vocabulary: V.
      time: T, the steps of the batch.
      batch: B.
    """
    keys = dict(zip(Masks._fields, jax.random.split(key, len(Masks._fields)), strict=True))
    steps = time if config.dropout_masks == "independent" else 1
    sizes = network.layer_sizes
    gates = CELLS[network.cell].recurrent_gates

    def each_layer(name: str, rate: float, shapes: list[tuple[int, ...]]) -> tuple | None:
        if is_off(rate) or not shapes:
            return None
        layer_keys = jax.random.split(keys[name], len(shapes))
        return tuple(draw_mask(k, rate, s) for k, s in zip(layer_keys, shapes, strict=True))

    return Masks(
        words=draw_mask(keys["words"], config.dropout_words, (vocabulary,)),
        input=draw_mask(
            keys["input"], config.dropout_input, (steps, batch, network.embedding_size)
        ),
        hidden=each_layer("hidden", config.dropout_hidden, [(steps, batch, h) for h in sizes[:-1]]),
        output=draw_mask(keys["output"], config.dropout_output, (steps, batch, sizes[-1])),
        state=each_layer("state", config.dropout_state, [(batch, h) for h in sizes]),
        weights=each_layer("weights", config.weight_drop, [(h, gates * h) for h in sizes]),
    )


def activation_penalty(h: jax.Array, mask: jax.Array | None, axis: str | None = None) -> jax.Array:
    """AR: the mean square of the last layer's output, as it enters the softmax.

    Args:
      h: after dropout, [T, B, H].
      mask: bool [T, B], False on padding; None: no padding.
      axis: of the mesh that the batch's rows are spread over; then this is what these rows add
        to the mean over all of them.
    """
    return _masked_mean(h**2, mask, axis)


def slowness_penalty(h: jax.Array, mask: jax.Array | None, axis: str | None = None) -> jax.Array:
    """TAR: the mean square of h_{t+1} - h_t within the chunk, before dropout. [T, B, H]."""
    both = None if mask is None else mask[1:] & mask[:-1]
    return _masked_mean((h[1:] - h[:-1]) ** 2, both, axis)


def _masked_mean(values: jax.Array, mask: jax.Array | None, axis: str | None) -> jax.Array:
    """Mean over entries [T, B, H] whose [T, B] the mask allows; 0 where there is none."""
    if mask is None:
        mean = jnp.mean(values) if values.size else jnp.zeros((), values.dtype)
        return mean / total(1, axis)
    counted = mask.astype(values.dtype)[..., None]
    entries = jnp.maximum(total(counted.sum(), axis) * values.shape[-1], 1)
    return jnp.sum(values * counted) / entries
