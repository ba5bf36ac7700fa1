"""Sampling: one compiled scan from a prompt to as many tokens as asked for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.data.vocabulary import END_ID, UNKNOWN_ID

HALVINGS = 32  # until one of 2^32 int32 numbers is left


@partial(jax.jit, static_argnums=(0, 4, 5))
def sample(
    config: ModelConfig,
    params: model.Params,
    key: jax.Array,
    prompt: jax.Array,
    count: int,
    samples: int,
    temperature: jax.Array | float,
    top_k: jax.Array | int,
    top_p: jax.Array | float,
) -> jax.Array:
    """Tokens drawn one after another from p(w_{t+1} | w_1 .. w_t)^(1 / temperature), truncated.

    Args:
      key: a typed PRNG key. Sample n draws from `fold_in(key, n)`, so the same key gives the
        same tokens however many samples and tokens are asked for.
      prompt: int [P], P >= 1, read first; `<eos>` where nothing is given.
      count: tokens to draw. `<unk>` is never drawn.
      samples: texts to draw, side by side.
      temperature, top_k, top_p: as for `truncate`; traced, so new values compile nothing.

    Returns:
      int32 [samples, count].
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    top_k, top_p = jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p, jnp.float32)
    zero = model.init_carry(config, 1, params.embedding.dtype)
    carry, h = model.apply(config, params, zero, prompt[:, None])
    carry, h_0 = jax.tree.map(
        lambda row: jnp.broadcast_to(row, (samples, *row.shape[1:])), (carry, h[-1])
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(samples))

    def step(state: Any, t: jax.Array) -> tuple[Any, jax.Array]:
        carry, h_t = state
        scores = model.logits(params, h_t).astype(jnp.float32).at[:, UNKNOWN_ID].set(-jnp.inf)
        scores = truncate(scores, temperature, top_k, top_p)
        # Gumbel-max with the noise scaled, in place of logits / temperature: exact at 0.
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), scores.shape[1:]))
        tokens = jnp.argmax(scores + noise(keys) * temperature, axis=1).astype(jnp.int32)
        carry, h_next = model.apply(config, params, carry, tokens[None, :])
        return (carry, h_next[-1]), tokens

    _, tokens = lax.scan(step, (carry, h_0), jnp.arange(count))
    return tokens.T


def truncate(
    scores: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Scores with -inf for the tokens that are not to be drawn.

    First the `top_k` likeliest are kept; then, of softmax(scores / temperature) over those,
    the nucleus: the fewest likeliest that have `top_p` of the probability together. Of tokens
    that are equally likely, the one of lower id counts as likelier, as argmax has it, so
    that top_k = 1 and top_p -> 0 are greedy. Probabilities are summed in float32, which may
    move the nucleus by tokens of a probability of 1e-6.

    Args:
      scores: float32 [N, V].
      temperature: float32 []; at 0 the likeliest token has all of the probability.
      top_k: int32 []; 0: no limit.
      top_p: float32 [] in (0, 1]; 1: no limit.

    Source: Holtzman et al. 2020 (The Curious Case of Neural Text Degeneration,
    arXiv:1904.09751), section 3.1; top-k: Fan et al. 2018, arXiv:1805.04833.
    """

    def nucleus() -> jax.Array:
        best = jnp.max(scores, axis=1, keepdims=True)
        # Where the temperature is 0, every difference over the smallest float is 0 or -inf.
        powers = (scores - best) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
        p = jnp.where(likeliest, jnp.exp(powers), 0)
        return leading(scores, p / jnp.sum(p, axis=1, keepdims=True), top_p)

    # Branches that are taken at run time: what has no limit costs nothing.
    ones, everything = jnp.ones_like(scores), jnp.ones_like(scores, bool)
    likeliest = lax.cond(
        top_k > 0, lambda: leading(scores, ones, top_k.astype(scores.dtype)), lambda: everything
    )
    kept = likeliest & lax.cond(top_p < 1, nucleus, lambda: everything)
    return jnp.where(kept, scores, -jnp.inf)


def leading(scores: jax.Array, weights: jax.Array, want: jax.Array) -> jax.Array:
    """The fewest likeliest tokens whose weights sum to `want`, ties broken by lower id.

    The score of the last one is found by bisection over all float32 numbers: 32 sums of V
    numbers, where sorting takes 5 (V = 5,000) to 30 (V = 50,000) times as long on a CPU.

    Args:
      scores: float32 [N, V].
      weights: float32 [N, V], none negative.
      want: float32 [], positive; more than there is keeps all.

    Returns:
      bool [N, V].
    """
    # int32 numbers in the order of the scores; 0 and -0 are one.
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0, scores), jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # the largest threshold that reaches `want` is in [low, high]
        # (low + high + 1) // 2 without an overflow.
        middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1)
        reached = jnp.sum(jnp.where(order >= middle, weights, 0), axis=1, keepdims=True) >= want
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

    ends = jnp.iinfo(jnp.int32)
    shape = (scores.shape[0], 1)
    low, high = jnp.full(shape, ends.min, jnp.int32), jnp.full(shape, ends.max, jnp.int32)
    threshold, _ = lax.fori_loop(0, HALVINGS, halve, (low, high))
    above = order > threshold
    tied = jnp.where(order == threshold, weights, 0)
    before = jnp.sum(jnp.where(above, weights, 0), axis=1, keepdims=True)
    before = before + jnp.cumsum(tied, axis=1) - tied
    return above | ((order == threshold) & (before < want))


def encode_prompt(ids: np.ndarray) -> np.ndarray:
    """A prompt as the model reads it: after a line end, and without one of its own."""
    return np.concatenate([[END_ID], ids[:-1]]).astype(np.int32)


def first_lines(tokens: np.ndarray, lines: int) -> np.ndarray:
    """Tokens up to the `lines`-th `<eos>`, which is left out; all of them where there are fewer."""
    ends = np.flatnonzero(tokens == END_ID)
    return tokens[: ends[lines - 1]] if len(ends) >= lines else tokens
