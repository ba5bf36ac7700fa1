"""Cross-entropy of an adaptive softmax, each cluster for the rows whose target it holds alone.

    nll_n = nll of the head's entry + nll of the word within its cluster, if it is in one

How many rows fall on a cluster is known only at run time. They are taken in turn, R at a time, in
a loop of as many rounds as there are rows: whatever the targets are, the result is that of all
logits, and what it costs follows the rows. The gradient is taken in the forward pass, as in
`lm.loss`, which does each round; so the number of rounds need not be known to differentiate.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.adaptive_softmax import AdaptiveWeights, first_ids
from lm.loss import chunk_rows, token_nats, weighted_nats

ROUND = 16  # a round is of this share of all rows: some are spent on filling the last one up


def adaptive_token_nats(
    h: jax.Array, w: AdaptiveWeights, b: jax.Array, targets: jax.Array
) -> jax.Array:
    """Negative log-likelihood of each target, in nats. For evaluation: not differentiated.

    Args:
      h: [N, H].
      b: of the head, [a + clusters].
      targets: int [N].

    Returns:
      float [N].
    """
    nats = token_nats(h, w.head, b, head_targets(w, targets))
    for start, tail in zip(first_ids(w), w.tails, strict=True):
        nats += selected_token_nats(h @ tail.projection, tail.w, tail.b, targets - start)
    return nats


def adaptive_weighted_nats(
    h: jax.Array,
    w: AdaptiveWeights,
    b: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any = None,
) -> jax.Array:
    """sum over n of weights_n * nll_n, a scalar in nats. As `adaptive_token_nats`.

    Args:
      weights: float [N]: 0 on padding; 1 / tokens gives the mean per token.
      dtype: as for `lm.loss.weighted_nats`; the projections, small ones, are not rounded.
    """
    nats = weighted_nats(h, w.head, b, head_targets(w, targets), weights, dtype)
    for start, tail in zip(first_ids(w), w.tails, strict=True):
        nats += selected_weighted_nats(
            h @ tail.projection, tail.w, tail.b, targets - start, weights, dtype
        )
    return nats


def head_targets(w: AdaptiveWeights, targets: jax.Array) -> jax.Array:
    """The head's entry for each target: its own, or its cluster's. int [N]."""
    starts = first_ids(w)
    entries = targets
    for i, start in enumerate(starts):
        entries = jnp.where(targets >= start, starts[0] + i, entries)
    return entries


def selected_token_nats(
    x: jax.Array, w: jax.Array, b: jax.Array, targets: jax.Array, dtype: Any = None
) -> jax.Array:
    """`lm.loss.token_nats` of the rows whose target is one of 0 .. V_i - 1; 0 for the others."""
    order, rounds, rows = rows_in_turn(targets, w.shape[1], x.dtype.itemsize)

    def one_round(k: jax.Array, nats: jax.Array) -> jax.Array:
        at = lax.dynamic_slice(order, (k * rows,), (rows,))
        found = token_nats(rows_or_zeros(x, at), w, b, rows_or_zeros(targets, at), dtype)
        return nats.at[at].set(found, mode="drop")

    return lax.fori_loop(0, rounds, one_round, jnp.zeros(targets.shape, x.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def selected_weighted_nats(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any = None,
) -> jax.Array:
    """`lm.loss.weighted_nats` over the rows whose target is one of 0 .. V_i - 1.

    Args:
      x: [N, H_i].
      w: [H_i, V_i].
      b: [V_i].
      targets: int [N], of any value.
      weights: float [N].
      dtype: that operands of the products are rounded to; None: none is.
    """
    return jnp.sum(selected_token_nats(x, w, b, targets, dtype) * weights)


def _selected_forward(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, Any]:
    order, rounds, rows = rows_in_turn(targets, w.shape[1], x.dtype.itemsize)
    # The loss is linear in its weights: their gradient is the nats of each row.
    differentiate = jax.grad(weighted_nats, argnums=(0, 1, 2, 4))

    def one_round(k: jax.Array, found: Any) -> Any:
        d_x, d_w, d_b, nats = found
        at = lax.dynamic_slice(order, (k * rows,), (rows,))
        x_r, targets_r, weights_r = (rows_or_zeros(a, at) for a in (x, targets, weights))
        d_x_r, d_w_r, d_b_r, nats_r = differentiate(x_r, w, b, targets_r, weights_r, dtype)
        d_x = d_x.at[at].set(d_x_r, mode="drop")
        nats = nats.at[at].set(nats_r, mode="drop")
        return d_x, d_w + d_w_r, d_b + d_b_r, nats

    zeros = tuple(jnp.zeros_like(array) for array in (x, w, b, weights))
    found = lax.fori_loop(0, rounds, one_round, zeros)
    return jnp.sum(found[3] * weights), found


def _selected_backward(dtype: Any, found: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    d_x, d_w, d_b, nats = found
    return cotangent * d_x, cotangent * d_w, cotangent * d_b, None, cotangent * nats


selected_weighted_nats.defvjp(_selected_forward, _selected_backward)


def rows_in_turn(targets: jax.Array, words: int, itemsize: int) -> tuple[jax.Array, jax.Array, int]:
    """The rows whose target is one of `words`, first to last, and how they are taken.

    Returns:
      (their numbers, filled up with N [a multiple of R]; rounds int []; R, rows a round).
    """
    count = targets.shape[0]
    rows = min(chunk_rows(count, words, itemsize), -(-count // ROUND))
    selected = (targets >= 0) & (targets < words)
    filled = -(-count // rows) * rows
    order = jnp.nonzero(selected, size=filled, fill_value=count)[0].astype(jnp.int32)
    rounds = (jnp.sum(selected, dtype=jnp.int32) + (rows - 1)) // rows
    return order, rounds, rows


def rows_or_zeros(array: jax.Array, at: jax.Array) -> jax.Array:
    """Rows by number; zeros for a number that is none."""
    return array.at[at].get(mode="fill", fill_value=0)
