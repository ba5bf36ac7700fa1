"""Arrays too small or too large for their floating point type, as (log scale, direction).

A float32 norm squares its entries first: below about 1e-23 it is exactly 0, and above 1e19 it
is infinite, long before the entries themselves are. Everything here divides by the largest
magnitude before it squares, and keeps that magnitude as a logarithm.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Scaled(NamedTuple):
    """The value exp(log[..., None]) * unit. log is -inf where the value is exactly zero."""

    log: jax.Array  # [...], nats
    unit: jax.Array  # [..., H]


def log_norm(x: jax.Array) -> jax.Array:
    """log ||x||_2 over the last axis, in nats: log m + log(sum (x / m)^2) / 2, m = max |x|.

    -inf for x = 0, also where it has no entries. [..., H] -> [...].
    """
    largest = jnp.max(jnp.abs(x), axis=-1, initial=0)
    safe = jnp.where(largest > 0, largest, 1)
    squares = jnp.sum((x / safe[..., None]) ** 2, axis=-1)
    return jnp.log(largest) + jnp.log(jnp.where(largest > 0, squares, 1)) / 2


def rescale(log: jax.Array, tree: Any) -> tuple[jax.Array, Any]:
    """Divide a pytree of [B, H] by its largest magnitude per row, and add that to log [B].

    A row of zeros gets log = -inf and stays zero.
    """
    largest = jnp.max(
        jnp.stack([jnp.max(jnp.abs(leaf), axis=-1) for leaf in jax.tree.leaves(tree)]), axis=0
    )
    safe = jnp.where(largest > 0, largest, 1)
    divided = jax.tree.map(lambda leaf: leaf / safe[..., None], tree)
    return jnp.where(largest > 0, log + jnp.log(safe), -jnp.inf), divided


def common_scale(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The larger of two log scales, and the factors that bring each onto it.

    Both -inf gives (-inf, 0, 0), where a plain difference would give NaN.
    """
    larger = jnp.maximum(first, second)
    finite = jnp.where(jnp.isneginf(larger), 0, larger)
    return larger, jnp.exp(first - finite), jnp.exp(second - finite)
