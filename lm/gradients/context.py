"""Context use: what a language model's loss says of words that are no longer there.

A gradient that reaches a word need not mean that the word is used. Here the far context is
taken away, and the loss is asked.

Source: Khandelwal, He, Qi, Jurafsky 2018 (arXiv:1805.04623).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.linalg import full_precision

# (key, tokens [W, N], far [W] bool) -> (tokens, mask): what is left of the context
Change = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def cut(key: jax.Array, tokens: jax.Array, far: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nothing before the last n tokens: the state there is zero."""
    return tokens, jnp.broadcast_to(~far[:, None], tokens.shape)


def shuffle(key: jax.Array, tokens: jax.Array, far: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The far tokens in random order, each window its own."""
    drawn = jax.random.uniform(key, tokens.shape)
    # Near tokens sort behind all far ones, among themselves in order.
    place = jnp.where(far[:, None], drawn, 1 + jnp.arange(len(tokens), dtype=drawn.dtype)[:, None])
    return jnp.take_along_axis(tokens, jnp.argsort(place, axis=0), axis=0), jnp.ones_like(
        tokens, bool
    )


def drop(key: jax.Array, tokens: jax.Array, far: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half of the far tokens left out, the rest moved together."""
    kept = jax.random.bernoulli(key, 0.5, tokens.shape)
    return tokens, kept | ~far[:, None]


def replace(key: jax.Array, tokens: jax.Array, far: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The far tokens of another window in place of one's own: real text, but another.

    Raises:
      ValueError: there is only one window.
    """
    windows = tokens.shape[1]
    if windows < 2:
        raise ValueError("replace has 1 window; wanted 2 or more, to take other text from")
    other = (jnp.arange(windows) + jax.random.randint(key, (), 1, windows)) % windows
    return jnp.where(far[:, None], tokens[:, other], tokens), jnp.ones_like(tokens, bool)


CHANGES: dict[str, Change] = {"cut": cut, "shuffle": shuffle, "drop": drop, "replace": replace}


@full_precision
def measure_context(
    config: ModelConfig,
    params: model.Params,
    tokens: jax.Array,
    targets: jax.Array,
    kept: jax.Array,
    change: Change,
    key: jax.Array,
) -> jax.Array:
    """Measure 11: the loss of the next token when only the last n tokens are left as they were.

    Args:
      tokens: int [W, N], N windows of W tokens.
      targets: int [N], the token after each window.
      kept: int [n], how many tokens next to the target stay, each from 0 to W.
      change: what becomes of the others, of CHANGES.
      key: for what is random; the same draw serves every n.

    Returns:
      nats per token, [n, N].
    """
    width = tokens.shape[0]

    def one(count: jax.Array) -> jax.Array:
        far = jnp.arange(width) < width - count
        changed, mask = change(key, tokens, far)
        return target_nats(config, params, changed, mask, targets)

    return lax.map(one, kept)


def target_nats(
    config: ModelConfig,
    params: model.Params,
    tokens: jax.Array,
    mask: jax.Array | None,
    targets: jax.Array,
) -> jax.Array:
    """-log p(target | tokens) of each window, from the zero state. [W, N], [N] -> [N] nats."""
    carry = model.init_carry(config, tokens.shape[1], params.embedding.dtype)
    state, _ = model.apply(config, params, carry, tokens, mask)
    scores = model.logits(params, state[-1].h)
    chosen = jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(scores, axis=1) - chosen


@full_precision
def measure_replaced_token(
    config: ModelConfig,
    params: model.Params,
    tokens: jax.Array,
    targets: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Causal use of each single token: the loss it costs to replace it by another at random.

    Returns:
      nats per token above the loss of the text as it is, [W, N]; row 0 is the token just before
      the target (lag 1).
    """
    width = tokens.shape[0]
    vocabulary = params.embedding.shape[0]
    shift = jax.random.randint(key, tokens.shape, 1, max(2, vocabulary))
    other = (tokens + shift) % vocabulary  # never the token itself
    whole = target_nats(config, params, tokens, None, targets)
    lags = jnp.arange(width)

    def one(lag: jax.Array) -> jax.Array:
        here = (lags == width - 1 - lag)[:, None]
        return target_nats(config, params, jnp.where(here, other, tokens), None, targets) - whole

    return lax.map(one, lags)
