"""Dynamic evaluation: the model goes on learning from the text that it is scored on.

Each segment of a few words is predicted with the parameters as they are, its nats counted, and
only then learnt from:

    theta <- theta - eta g / (sqrt(MS_g) + epsilon) + lambda d (theta_g - theta)      (rms)
    theta <- theta - eta g + lambda (theta_g - theta)                                 (sgd)

g is the gradient of the segment's mean nats, cut where the segment starts; theta_g are the
trained parameters, to which everything decays back. MS_g is the mean square of the gradient
over batches of the training text, and d = sqrt(MS_g) / mean sqrt(MS_g): what varied in training
learns more slowly and forgets faster. lambda d is at most 1, which is all the way back.

Source: Krause, Kahembwe, Murray, Renals 2018, arXiv:1709.07432, and their
dynamiceval.py for what these leave open: sqrt(MS_g) is averaged within each array and then over
the arrays (we have one bias a layer where PyTorch has two), and loss is a mean over the words of
a segment, so rates suit one `bptt`. Plain SGD with lambda = 0: Mikolov et al. 2010.

With a cache (`lm.neural_cache`) in the same pass, the mixture is scored; what is learnt is the
model's own loss.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.evaluate import Pieces, Segments, cut_pieces, read_blocks, reset_rows
from lm.neural_cache import Memory, Reading, gather, init_memory, join, look_up
from lm.softmax import exact_nats

STEPS = 64  # segments a dispatch
STATISTICS_STEPS = 16  # batches of the training text a dispatch


class Statistics(NamedTuple):
    """How large the gradient of each parameter was on the training text."""

    rms: model.Params  # sqrt(MS_g), shapes of the parameters
    mean: jax.Array  # [], of rms: within each array, then over the arrays


class Rates(NamedTuple):
    """Step sizes; float scalars that may be traced."""

    rate: jax.Array | float  # eta
    decay: jax.Array | float  # lambda
    epsilon: jax.Array | float = 2e-5


class Learner(NamedTuple):
    """What is carried through the text."""

    params: model.Params
    carry: model.Carry
    memory: Memory | None  # of the neural cache, if there is one


# (learner, trained, statistics, rates, segments, thetas) -> (learner, Reading)
DynamicBlock = Callable[
    [Learner, model.Params, Statistics | None, Rates, Segments, jax.Array],
    tuple[Learner, Reading],
]


def mean_nats(
    params: model.Params,
    weights: jax.Array,
    config: ModelConfig,
    carry: model.Carry,
    segment: Segments,
) -> tuple[jax.Array, tuple[model.Carry, jax.Array]]:
    """sum over words of weight * nats: (that, (carry, h [T, B, H])). weights [T, B]."""
    carry, h = model.apply(config, params, carry, segment.inputs, segment.mask)
    nats = exact_nats(
        params, h.reshape(-1, h.shape[-1]), segment.targets.reshape(-1), weights.reshape(-1)
    )
    return nats, (carry, h)


class Scored(NamedTuple):
    """A segment, predicted."""

    grads: model.Params  # of the mean over its words
    nats: jax.Array  # [T, B] of each word
    carry: model.Carry
    h: jax.Array  # [T, B, H]
    any: jax.Array  # bool []: False where all is padding


def score(
    config: ModelConfig, params: model.Params, carry: model.Carry, segment: Segments
) -> Scored:
    """Predict a segment, and what could be learnt from it."""
    carry = reset_rows(segment.reset, carry)
    count = segment.mask.sum(dtype=jnp.int32)
    dtype = params.embedding.dtype
    weights = segment.mask.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
    measure = jax.grad(mean_nats, argnums=(0, 1), has_aux=True)
    # The loss is linear in its weights: their gradient is the nats of each word.
    (grads, nats), (carry, h) = measure(params, weights, config, carry, segment)
    return Scored(grads, nats, carry, h, count > 0)


def update(
    params: model.Params,
    grads: model.Params,
    trained: model.Params,
    statistics: Statistics | None,
    rates: Rates,
) -> model.Params:
    """One step of the equations above; without statistics, plain SGD."""

    def step_sgd(theta: jax.Array, g: jax.Array, start: jax.Array) -> jax.Array:
        rate, decay = (jnp.asarray(r, theta.dtype) for r in (rates.rate, rates.decay))
        return theta - rate * g + decay * (start - theta)

    def step_rms(theta: jax.Array, g: jax.Array, start: jax.Array, rms: jax.Array) -> jax.Array:
        rate, decay, epsilon, mean = (
            jnp.asarray(r, theta.dtype)
            for r in (*rates, statistics.mean)  # type: ignore[union-attr]
        )
        back = jnp.minimum(decay / mean * rms, 1)
        return theta - rate * g / (rms + epsilon) + back * (start - theta)

    if statistics is None:
        return jax.tree.map(step_sgd, params, grads, trained)
    return jax.tree.map(step_rms, params, grads, trained, statistics.rms)


def learn_segment(
    config: ModelConfig,
    trained: model.Params,
    statistics: Statistics | None,
    rates: Rates,
    thetas: jax.Array,
    learner: Learner,
    segment: Segments,
) -> tuple[Learner, Reading]:
    """Predict the words of one row's segment, then learn from them."""
    scored = score(config, learner.params, learner.carry, segment)
    nats = scored.nats[:, 0]
    memory, log_cache = learner.memory, jnp.zeros((len(nats), 0), nats.dtype)
    if memory is not None:
        words, mask = segment.targets[:, 0], segment.mask[:, 0]
        memory, log_cache = look_up(memory, scored.h[:, 0], words, mask, nats, thetas)
    params = update(learner.params, scored.grads, trained, statistics, rates)
    return Learner(params, scored.carry, memory), Reading(nats, log_cache)


def make_block(config: ModelConfig) -> DynamicBlock:
    """Compile many segments of one row into one dispatch. The learner is donated."""

    def block(
        learner: Learner,
        trained: model.Params,
        statistics: Statistics | None,
        rates: Rates,
        segments: Segments,
        thetas: jax.Array,
    ) -> tuple[Learner, Reading]:
        step = partial(learn_segment, config, trained, statistics, rates, thetas)
        return lax.scan(step, learner, segments)

    return jax.jit(block, donate_argnums=0)


def measure_dynamic(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    rates: Rates,
    statistics: Statistics | None = None,
    *,
    bptt: int = 5,
    window: int = 0,
    thetas: tuple[float, ...] = (),
    sentences: bool = False,
    block: DynamicBlock | None = None,
    progress: Callable[[int], object] | None = None,
) -> Reading:
    """Read a text once, learning as it goes, from the trained parameters and the zero state.

    Args:
      tokens: int32 [N].
      rates: their values are not compiled in.
      statistics: from `measure_statistics`; None: plain SGD.
      bptt: words a segment: predicted before any of them is learnt from.
      window: words of a neural cache beside it; 0: none.
      thetas: of the cache.
      sentences: the state starts anew with each sentence (what is learnt stays), and no segment
        goes over a sentence's end.
      block: from `make_block`, to spare its compilation.
      progress: called with the number of tokens that a dispatch has read.

    Returns:
      Reading of NumPy arrays: nats [N] of the learning model alone, log p_cache [N, thetas].
    """
    if bool(window) != bool(thetas):
        raise ValueError(
            f"window is {window} and thetas are {thetas}; wanted both for a cache, or neither"
        )
    block = block or make_block(config)
    dtype = params.embedding.dtype
    learner = Learner(
        jax.tree.map(jnp.copy, params),  # donated; `params` themselves stay
        model.init_carry(config, 1, dtype),
        init_memory(params, window, bptt) if window else None,
    )
    rates = Rates(*(jnp.asarray(r, dtype) for r in rates))
    parts = []
    pieces = cut_pieces(tokens, bptt, sentences=sentences)
    for segments in read_blocks(tokens, pieces, bptt, STEPS):
        learner, reading = block(
            learner, params, statistics, rates, segments, jnp.asarray(thetas, dtype)
        )
        parts.append(gather(reading, segments))
        if progress:
            progress(len(parts[-1].nats))
    return join(parts)


def measure_statistics(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    *,
    bptt: int = 5,
    batch: int = 100,
    batches: int = 0,
    sentences: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Statistics:
    """sqrt(MS_g) of each parameter over the training text.

    Args:
      tokens: int32 [N], the training text.
      bptt: words a row of each batch.
      batch: rows, each a contiguous part of the text with its state carried. Gradients are of
        the mean over a batch, so their size depends on it.
      batches: at most so many, from the start of every row; 0: the whole text.
      sentences: as in `measure_dynamic`.
      progress: called with the number of batches that a dispatch has read.
    """

    @partial(jax.jit, donate_argnums=0)
    def add_squares(
        total: tuple[model.Params, jax.Array, model.Carry], params: model.Params, part: Segments
    ) -> tuple[model.Params, jax.Array, model.Carry]:
        def step(total: tuple, segment: Segments) -> tuple[tuple, None]:
            squares, count, carry = total
            scored = score(config, params, carry, segment)
            squares = jax.tree.map(lambda s, g: s + g * g, squares, scored.grads)
            return (squares, count + scored.any.astype(count.dtype), scored.carry), None

        return lax.scan(step, total, part)[0]

    pieces = cut_pieces(tokens, bptt, batch=batch, sentences=sentences)
    if batches:
        pieces = Pieces(*(a[:batches] for a in pieces))
    dtype = params.embedding.dtype
    carry = model.init_carry(config, batch, dtype)
    total = jax.tree.map(jnp.zeros_like, params), jnp.zeros((), dtype), carry
    for part in read_blocks(tokens, pieces, bptt, STATISTICS_STEPS):
        total = add_squares(total, params, part)
        if progress:
            progress(int(part.mask.any(axis=(1, 2)).sum()))
    squares, count, _ = total
    rms = jax.tree.map(lambda s: jnp.sqrt(s / count), squares)
    means = [leaf.mean() for leaf in jax.tree.leaves(rms) if leaf.size]
    return Statistics(rms, jnp.stack(means).mean())
