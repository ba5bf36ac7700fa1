"""The neural cache: words that followed a hidden state like this one, not long ago.

    p_cache(w) ~ sum over i = t - W .. t - 1 of 1{w_{i+1} = w} exp(theta h_t . h_i)
    p(w_{t+1}) = (1 - lambda) p_model(w_{t+1}) + lambda p_cache(w_{t+1})

The window slides word by word: each word is predicted from the W before it, no more and no
fewer (all there are, in the first W; the first word has the model alone). The memory is a ring
of W + T slots, whatever the length of the text; T words look it up at once, as one product of
which a band counts.

What is read of a word is the model's nats and log p_cache at every theta asked for, so that one
pass serves all thetas, and `mix` any number of lambdas after it.

Source: Grave, Joulin, Usunier 2016, arXiv:1612.04426. h is the output of the
last layer, without dropout. The published code of AWD-LSTM (pointer.py) leaves the cache out
until W words have been read; the paper and this do not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.evaluate import Segments, cut_pieces, read_blocks, reset_rows
from lm.softmax import exact_token_nats

LENGTH = 64  # tokens looked up at once: changes the time, not the result
STEPS = 16  # segments a dispatch


class Memory(NamedTuple):
    """The last hidden states and the word that followed each; word i is in slot i mod R."""

    h: jax.Array  # [R, H], R = W + T
    words: jax.Array  # int32 [R]
    seen: jax.Array  # int32 [], words remembered since the start


class CacheState(NamedTuple):
    """What is carried through the text."""

    carry: model.Carry
    memory: Memory


class Reading(NamedTuple):
    """What is measured of each word, in the order of the text."""

    nats: Any  # [N] of the model alone
    log_cache: Any  # [N, thetas], log p_cache(word); log p_model of the first word


# (params, state, segments, thetas) -> (state, Reading of [S, T] and [S, T, thetas])
CacheBlock = Callable[[model.Params, CacheState, Segments, jax.Array], tuple[CacheState, Reading]]


def init_memory(params: model.Params, window: int, length: int) -> Memory:
    """An empty memory.

    Args:
      window: W, words that can be looked up.
      length: T, words that look it up at once.
    """
    if window < 1:
        raise ValueError(f"window is {window}; wanted at least 1 word")
    h_size = params.layers[-1].w_h.shape[0]
    return Memory(
        jnp.zeros((window + length, h_size), params.embedding.dtype),
        jnp.zeros(window + length, jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def look_up(
    memory: Memory,
    h: jax.Array,
    words: jax.Array,
    mask: jax.Array,
    nats: jax.Array,
    thetas: jax.Array,
) -> tuple[Memory, jax.Array]:
    """Look T words up, each in the W before it, and remember them.

    Args:
      memory: of R = W + T slots.
      h: [T, H], the states that predict the words.
      words: int32 [T].
      mask: bool [T]; True first, then False: padding is not remembered.
      nats: [T], -log p_model(word): the answer where nothing is remembered.
      thetas: [K].

    Returns:
      (memory, log p_cache(word) [T, K]), -inf where the word is not in the window.
    """
    slots, time = len(memory.words), len(words)
    window = slots - time
    positions = memory.seen + jnp.arange(time, dtype=jnp.int32)  # of the words, in the text
    written = positions % slots
    held_h = memory.h.at[written].set(h)
    held_words = memory.words.at[written].set(words)
    # The position of what each slot holds now: the last that fell on it, negative if none did.
    newest = memory.seen + time - 1
    held = newest - (newest - jnp.arange(slots, dtype=jnp.int32)) % slots
    age = positions[:, None] - held[None, :]  # [T, R]
    inside = (age >= 1) & (age <= window) & (held >= 0)[None, :]
    same = inside & (held_words[None, :] == words[:, None])
    scores = h @ held_h.T  # [T, R]

    def log_share(theta: jax.Array) -> jax.Array:
        scaled = theta * scores
        return log_sum(scaled, same) - log_sum(scaled, inside)

    found = jax.vmap(log_share, out_axes=1)(thetas)
    found = jnp.where((positions > 0)[:, None], found, -nats[:, None])
    seen = memory.seen + mask.sum(dtype=jnp.int32)
    return Memory(held_h, held_words, seen), found


def log_sum(scores: jax.Array, chosen: jax.Array) -> jax.Array:
    """log of the sum over a row of exp(score) where `chosen`; -inf where none is. [T, R] -> [T]."""
    return jax.nn.logsumexp(scores, axis=1, where=chosen)


def mix(reading: Reading, weight: float, theta: int = 0) -> np.ndarray:
    """-log p of each word under (1 - lambda) p_model + lambda p_cache. [N], float64.

    Args:
      weight: lambda, in [0, 1].
      theta: which of the thetas that were measured.
    """
    log_model = -np.asarray(reading.nats, np.float64)
    log_cache = np.asarray(reading.log_cache, np.float64)[:, theta]
    with np.errstate(divide="ignore"):  # log 0 = -inf, as it should be
        return -np.logaddexp(np.log1p(-weight) + log_model, np.log(weight) + log_cache)


def make_block(config: ModelConfig) -> CacheBlock:
    """Compile many segments of one row into one dispatch. The state is donated."""

    def block(
        params: model.Params, state: CacheState, segments: Segments, thetas: jax.Array
    ) -> tuple[CacheState, Reading]:
        return lax.scan(partial(read_segment, config, params, thetas), state, segments)

    return jax.jit(block, donate_argnums=1)


def read_segment(
    config: ModelConfig,
    params: model.Params,
    thetas: jax.Array,
    state: CacheState,
    segment: Segments,
) -> tuple[CacheState, Reading]:
    """Predict T words of one row, then remember them."""
    carry = reset_rows(segment.reset, state.carry)
    carry, h = model.apply(config, params, carry, segment.inputs, segment.mask)
    words = segment.targets[:, 0]
    nats = exact_token_nats(params, h[:, 0], words)
    memory, log_cache = look_up(state.memory, h[:, 0], words, segment.mask[:, 0], nats, thetas)
    return CacheState(carry, memory), Reading(nats, log_cache)


def measure_cache(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    *,
    window: int,
    thetas: tuple[float, ...],
    sentences: bool = False,
    block: CacheBlock | None = None,
    progress: Callable[[int], object] | None = None,
) -> Reading:
    """Read a text once, one row from the zero state and an empty memory.

    Args:
      tokens: int32 [N].
      window: W.
      thetas: each is measured; their number is compiled in, their values are not.
      sentences: the model's state starts anew with each sentence; the memory does not.
      block: from `make_block`, to spare its compilation.
      progress: called with the number of tokens that a dispatch has read.

    Returns:
      Reading of NumPy arrays [N] and [N, thetas].
    """
    block = block or make_block(config)
    dtype = params.embedding.dtype
    state = CacheState(model.init_carry(config, 1, dtype), init_memory(params, window, LENGTH))
    parts = []
    pieces = cut_pieces(tokens, LENGTH, sentences=sentences)
    for segments in read_blocks(tokens, pieces, LENGTH, STEPS):
        state, reading = block(params, state, segments, jnp.asarray(thetas, dtype))
        parts.append(gather(reading, segments))
        if progress:
            progress(len(parts[-1].nats))
    return join(parts)


def gather(reading: Reading, segments: Segments) -> Reading:
    """The words of a block, padding left out: NumPy arrays [n] and [n, thetas]."""
    mask = segments.mask[:, :, 0]
    return Reading(*(np.asarray(a)[mask] for a in reading))


def join(parts: list[Reading]) -> Reading:
    """Readings of consecutive blocks as one."""
    return Reading(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
