"""Cross-entropy from hidden states, without ever holding all logits.

    nll_n = logsumexp(h_n W + b) - (h_n W + b)[target_n]      in nats per token

A batch of N tokens over V words has N x V logits: 4 GB at N = 4,096, V = 267,000. They are
made in chunks of rows that fit `LOGITS_BYTES`, each used and dropped. The gradient with
respect to the logits, softmax - onehot, needs nothing but the same chunk, so it is taken
in the forward pass while the chunk is there: three products in all, none repeated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.native.softmax import log_normalizer, softmax_gradient
from lm.products import TRANSPOSED_LEFT, column_sums, dot, dot_over_words

LOGITS_BYTES = 64 * 2**20  # most memory that one chunk of logits takes, on a CPU
DEVICE_LOGITS_BYTES = 512 * 2**20  # elsewhere: products must be large to keep a GPU busy


def chunk_rows(rows: int, vocabulary: int, itemsize: int = 4, limit: int | None = None) -> int:
    """How many rows of logits are made at a time: an even share of N, at most `limit` bytes.

    Args:
      limit: None: the backend's own.
    """
    if limit is None:
        limit = LOGITS_BYTES if jax.default_backend() == "cpu" else DEVICE_LOGITS_BYTES
    most = max(1, limit // (vocabulary * itemsize))
    chunks = -(-rows // most)
    return -(-rows // chunks)


def token_nats(
    h: jax.Array, w: jax.Array, b: jax.Array, targets: jax.Array, dtype: Any = None
) -> jax.Array:
    """Negative log-likelihood of each target, in nats. For evaluation: not differentiated.

    Args:
      h: [N, H].
      w: [H, V].
      b: [V].
      targets: int [N].
      dtype: that operands of the product are rounded to; None: none is.

    Returns:
      float [N].
    """
    rows = chunk_rows(h.shape[0], w.shape[1], h.dtype.itemsize)
    h_chunks, target_chunks = _chunked(h, rows), _chunked(targets, rows)

    def chunk_nats(inputs: Any) -> jax.Array:
        h_c, targets_c = inputs
        log_z = log_normalizer(dot(h_c, w, dtype), b)
        return log_z - chosen_scores(h_c, w, b, targets_c, dtype)

    return lax.map(chunk_nats, (h_chunks, target_chunks)).reshape(-1)[: h.shape[0]]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def weighted_nats(
    h: jax.Array,
    w: jax.Array,
    b: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any = None,
) -> jax.Array:
    """sum over n of weights_n * nll_n, a scalar in nats.

    Args:
      h: [N, H].
      w: [H, V].
      b: [V].
      targets: int [N].
      weights: float [N]: 0 on padding; 1 / tokens gives the mean per token.
      dtype: that operands of the products are rounded to; None: none is.
    """
    return jnp.sum(token_nats(h, w, b, targets, dtype) * weights)


def _weighted_forward(
    h: jax.Array,
    w: jax.Array,
    b: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, Any]:
    rows = chunk_rows(h.shape[0], w.shape[1], h.dtype.itemsize)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        d_w, d_b = carry
        h_c, targets_c, weights_c = inputs
        logits = dot(h_c, w, dtype)
        d_scores, log_z = softmax_gradient(logits, b, weights_c, targets_c)
        nats = log_z - chosen_scores(h_c, w, b, targets_c, dtype)
        d_w_c = dot(h_c, d_scores, dtype, TRANSPOSED_LEFT)
        d_h_c = dot_over_words(d_scores, w, dtype)
        return (d_w + d_w_c, d_b + column_sums(d_scores)), (nats, d_h_c)

    zeros = jnp.zeros_like(w), jnp.zeros_like(b)
    (d_w, d_b), (nats, d_h) = scan_chunks(step, zeros, (h, targets, weights), rows)
    return jnp.sum(nats * weights), (d_h, d_w, d_b, nats)


def _weighted_backward(dtype: Any, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    d_h, d_w, d_b, nats = residuals
    return cotangent * d_h, cotangent * d_w, cotangent * d_b, None, cotangent * nats


weighted_nats.defvjp(_weighted_forward, _weighted_backward)


def scan_chunks(
    step: Callable[[Any, Any], tuple[Any, Any]], zeros: Any, arrays: Any, rows: int
) -> tuple[Any, Any]:
    """lax.scan of `step` over so many rows at a time.

    Args:
      step: (sums, a chunk of each array) -> (sums with its own added, an entry for each row).
      zeros: the sums at first.
      arrays: [N, ...] each; zeros follow their end.

    Returns:
      (the sums, the entries, [N, ...] each).
    """
    count = len(jax.tree.leaves(arrays)[0])
    chunks = jax.tree.map(lambda array: _chunked(array, rows), arrays)
    if rows >= count:  # everything fits: no loop, no accumulator
        first = jax.tree.map(lambda chunk: chunk[0], chunks)
        return step(jax.tree.map(lambda _: 0.0, zeros), first)
    sums, found = lax.scan(step, zeros, chunks)
    return sums, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)


def _chunked(array: jax.Array, rows: int) -> jax.Array:
    """[N, ...] -> [chunks, rows, ...], zeros after the end."""
    widths = [(0, -array.shape[0] % rows)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, widths).reshape(-1, rows, *array.shape[1:])


def chosen_scores(
    h: jax.Array, w: jax.Array, b: jax.Array, targets: jax.Array, dtype: Any
) -> jax.Array:
    """The target's own score [N], from its column of W.

    A gather from all scores would make the compiler write them to memory once more (twice the time
    of the whole loss on a CPU).
    """
    if dtype is not None:  # the score that is among them
        h, w = h.astype(dtype).astype(h.dtype), w.astype(dtype).astype(w.dtype)
    return jnp.sum(h * jnp.take(w, targets, axis=1).T, axis=-1) + jnp.take(b, targets)
