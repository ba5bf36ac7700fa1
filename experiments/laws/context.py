"""A process of known lag and known Bayes loss, and a network that answers it like Bayes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from experiments.laws.error import (
    Found,
    absolute_error,
    float64,
    log_error,
    tolerance,
    worst,
)
from experiments.laws.layer import make_layer, make_params
from lm.cells.lstm import LSTM
from lm.config import ModelConfig
from lm.gradients.context import CHANGES, measure_context
from lm.model import Params
from lm.recurrence import as_step
from lm.tasks import LAG, LAG_NOISE, LAG_SYMBOLS, lag_bayes_nats, sample_lag_process

STANDARD_ERRORS = 4.0


def register_model(dtype: str) -> tuple[ModelConfig, Params]:
    """A ReLU RNN that answers the lag process like Bayes: a shift register of its last tokens.

    Slot k holds token x_{t-k} as a one-hot; the softmax reads the last slot, and gives every
    token the same score where that is empty.
    """
    size = LAG * LAG_SYMBOLS
    w_x = np.eye(LAG_SYMBOLS, size)
    w_h = np.eye(size, k=LAG_SYMBOLS)
    other = LAG_NOISE / LAG_SYMBOLS
    follows = np.roll(np.eye(LAG_SYMBOLS), 1, axis=1)  # token a -> a + 1
    softmax = np.zeros((size, LAG_SYMBOLS))
    softmax[-LAG_SYMBOLS:] = np.log(follows * (1 - LAG_NOISE) + other)
    params = Params(
        jnp.eye(LAG_SYMBOLS, dtype=dtype),
        (make_params(dtype, w_x, w_h, np.zeros(size)),),
        jnp.asarray(softmax, dtype),
        jnp.zeros(LAG_SYMBOLS, dtype),
    )
    config = ModelConfig(cell="irnn", layers=1, hidden_size=size, embedding_size=LAG_SYMBOLS)
    return config, params


def bayes_loss(dtype: str) -> Found:
    """Every pair of a token and what comes `LAG` after it, weighted by its probability."""
    config, params = register_model(dtype)
    token, target = (grid.ravel() for grid in np.mgrid[:LAG_SYMBOLS, :LAG_SYMBOLS])
    width = 12
    tokens = np.random.default_rng(0).integers(0, LAG_SYMBOLS, (width, len(token)))
    tokens[-LAG] = token
    other = LAG_NOISE / LAG_SYMBOLS
    follows = target == (token + 1) % LAG_SYMBOLS
    weights = np.where(follows, 1 - LAG_NOISE + other, other) / LAG_SYMBOLS
    kept = np.arange(width + 1)
    errors = []
    for name, change in CHANGES.items():
        measure = jax.jit(partial(measure_context, config, change=change))
        nats = measure(
            params,
            jnp.asarray(tokens, jnp.int32),
            jnp.asarray(target, jnp.int32),
            jnp.asarray(kept),
            key=jax.random.key(0),
        )
        loss = float64(nats) @ weights
        errors.append(log_error(loss[LAG:], lag_bayes_nats()))
        if name == "cut":
            errors.append(log_error(loss[:LAG], np.log(LAG_SYMBOLS)))
    return worst(*errors), tolerance(dtype, 1e-14, 2e-6)


def sampled_loss(dtype: str) -> Found:
    """The same network on samples of the process: off by a few standard errors of the mean."""
    config, params = register_model(dtype)
    windows, other = 20_000, LAG_NOISE / LAG_SYMBOLS

    @jax.jit
    def measure(params: Params) -> jax.Array:
        tokens = sample_lag_process(jax.random.key(1), 13, windows).astype(jnp.int32)
        kept = jnp.asarray([12])
        return measure_context(
            config, params, tokens[:-1], tokens[-1], kept, CHANGES["cut"], jax.random.key(0)
        )

    likely = 1 - LAG_NOISE + other
    gap = np.log(likely / other)  # a surprise costs this much more
    standard_error = gap * np.sqrt(likely * (1 - likely) / windows)
    error = absolute_error(float64(measure(params)).mean(), lag_bayes_nats())
    return error / standard_error, STANDARD_ERRORS


def shorter_text(dtype: str) -> Found:
    """A recurrent network's loss after reading the last n tokens alone."""
    layer = make_layer(LSTM, dtype, 1, hidden=6)
    rng = np.random.default_rng(0)
    config = ModelConfig(cell="lstm", layers=1, hidden_size=6, embedding_size=6)
    embedding, softmax_w, softmax_b = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((9, 6), (6, 9), (9,))
    )
    params = Params(embedding, (layer.params,), softmax_w, softmax_b)
    tokens, targets = (
        jnp.asarray(rng.integers(0, 9, shape), jnp.int32) for shape in ((12, 3), (3,))
    )

    @jax.jit
    def plain(params: Params, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        zero = LSTM.init_state(3, 6, params.embedding.dtype)
        last, _ = lax.scan(partial(as_step(LSTM), layer.params), zero, params.embedding[tokens])
        scores = last.h @ softmax_w + params.softmax_b[None]
        return logsumexp(scores, axis=1) - scores[jnp.arange(3), targets]

    kept = (1, 5, 12)
    measure = jax.jit(partial(measure_context, config, change=CHANGES["cut"]))
    found = measure(params, tokens, targets, jnp.asarray(kept), key=jax.random.key(0))
    expected = np.stack([plain(params, tokens[12 - n :], targets) for n in kept])
    return log_error(found, expected), tolerance(dtype, 1e-13, 1e-5)
