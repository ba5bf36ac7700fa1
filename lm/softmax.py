"""From hidden states to nats, whichever softmax a model has, never holding all logits.

    full       softmax(h W + b), `lm.loss`
    adaptive   rare words in clusters, `lm.adaptive_loss`: its parameters are another model's
    sampled    full, but trained on a few words a batch, `lm.sampled_softmax`

What a model has is seen from its parameters; how it is trained is said by its configuration.
The distribution itself is `model.logits`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lm import model
from lm.adaptive_loss import adaptive_token_nats, adaptive_weighted_nats
from lm.adaptive_softmax import AdaptiveWeights
from lm.alignment import aligned_width, widen
from lm.config import ModelConfig
from lm.loss import token_nats, weighted_nats
from lm.sampled_softmax import draw_words, sampled_weighted_nats


class Softmax(NamedTuple):
    """The cross-entropy of a kind of softmax."""

    token_nats: Callable[..., jax.Array]  # (h, w, b, targets) -> [N]
    weighted_nats: Callable[..., jax.Array]  # (h, w, b, targets, weights, dtype) -> []


FULL = Softmax(token_nats, weighted_nats)
ADAPTIVE = Softmax(adaptive_token_nats, adaptive_weighted_nats)


def softmax_of(params: model.Params) -> tuple[Softmax, Any, jax.Array]:
    """(the softmax of a model, its W, its b)."""
    w = model.softmax_weights(params)
    return ADAPTIVE if isinstance(w, AdaptiveWeights) else FULL, w, params.softmax_b


def align_inputs(h: jax.Array, w: Any) -> tuple[jax.Array, Any]:
    """h [N, H] and W with H filled up to an aligned width; an adaptive softmax's as they are."""
    if isinstance(w, AdaptiveWeights):
        return h, w
    width = aligned_width(len(w))
    return widen(h, width), widen(w, width, axis=0)


def exact_token_nats(params: model.Params, h: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p of each target, in nats. For evaluation: not differentiated.

    Args:
      h: [N, H].
      targets: int [N].

    Returns:
      float [N].
    """
    softmax, w, b = softmax_of(params)
    return softmax.token_nats(*align_inputs(h, w), b, targets)


def exact_nats(
    params: model.Params, h: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """sum over n of weights_n * -log p(target_n), a scalar in nats.

    Args:
      weights: float [N]: 0 on padding; 1 / tokens gives the mean per token.
    """
    softmax, w, b = softmax_of(params)
    return softmax.weighted_nats(*align_inputs(h, w), b, targets, weights)


def training_nats(
    config: ModelConfig,
    params: model.Params,
    h: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """`exact_nats`, or with softmax=sampled the loss over the words that `key` draws.

    Products are taken in the configuration's precision.

    Args:
      key: a typed PRNG key, for this batch alone; None: exact.
    """
    softmax, w, b = softmax_of(params)
    h, w = align_inputs(h, w)
    if config.softmax != "sampled" or key is None:
        return softmax.weighted_nats(h, w, b, targets, weights, config.product_dtype)
    sample = draw_words(key, b.shape[0], config.sampled_words)
    return sampled_weighted_nats(h, w, b, targets, weights, sample, config.product_dtype)
