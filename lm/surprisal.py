"""Surprisal: what each token of a text costs a model, and how open the model was before it.

    surprisal_t = -log p(w_t | w_1 .. w_{t-1})
    entropy_t   = -sum over v of p(v | w_1 .. w_{t-1}) log p(v | w_1 .. w_{t-1})     in nats

The surprisals are the numbers that `lm.evaluate` adds up, so they sum to what its perplexity
is made of.

Source: Hale 2001, Levy 2008 (surprisal); Hale 2003 (entropy and its reduction).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.evaluate import Forward, sentence_nats, stream_nats
from lm.loss import chunk_rows
from lm.tables import unknown_name

CONTEXTS = ("text", "sentence")


def measure_surprisal(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    forward: Forward,
    *,
    context: str = "text",
    batch: int = 16,
    length: int = 64,
) -> np.ndarray:
    """What `forward` finds for each token, in the order of the text.

    Args:
      tokens: int32 [N], N >= 1; the first is predicted after `<eos>`.
      forward: from `lm.evaluate.make_forward` for surprisal, `make_entropy_forward` for entropy.
      context: text (the state is carried through all of it from the zero state) or sentence
        (each starts from the zero state).
      batch: rows side by side; the time, not the result, which is that of one row up to
        `lm.evaluate.STATE_TOLERANCE` in the state.
      length: tokens a call of a row (text); the time, not the result.

    Returns:
      float64 [N], in nats.

    Raises:
      ValueError: no tokens, or no such context.
    """
    if not len(tokens):
        raise ValueError("the text has no token; wanted at least one")
    if context == "text":
        nats, _ = stream_nats(config, params, tokens, batch=batch, length=length, forward=forward)
    elif context == "sentence":
        nats = sentence_nats(config, params, tokens, batch=batch, forward=forward)
    else:
        raise ValueError(unknown_name("context", context, dict.fromkeys(CONTEXTS)))
    return nats.astype(np.float64)


def make_entropy_forward(config: ModelConfig) -> Forward:
    """Compile (params, carry, inputs, targets, mask) -> (carry, entropy before each target [T, B]).

    To be used where `lm.evaluate.make_forward` is: targets change nothing, masked tokens have 0.
    """

    def forward(
        params: model.Params, carry: model.Carry, inputs: Any, targets: Any, mask: Any
    ) -> tuple[model.Carry, jax.Array]:
        carry, h = model.apply(config, params, carry, inputs, mask)
        entropy = next_entropy(params, h.reshape(-1, h.shape[-1]))
        return carry, jnp.where(mask, entropy.reshape(targets.shape), 0)

    return jax.jit(forward)


def next_entropy(params: model.Params, h: jax.Array) -> jax.Array:
    """Entropy of the next token's distribution, in nats. h [N, H] -> [N].

    Logits are made in chunks of rows, used and dropped.
    """
    rows = chunk_rows(h.shape[0], params.embedding.shape[0], h.dtype.itemsize)
    padded = jnp.pad(h, ((0, -h.shape[0] % rows), (0, 0)))

    def chunk_entropy(h_c: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(model.logits(params, h_c), axis=-1)
        p = jnp.exp(log_p)
        # A token of p = 0 adds nothing, where 0 times a log p of -inf would be no number.
        return -jnp.sum(jnp.where(p > 0, p * log_p, 0), axis=-1)

    chunks = padded.reshape(-1, rows, h.shape[1])
    return lax.map(chunk_entropy, chunks).reshape(-1)[: h.shape[0]]
