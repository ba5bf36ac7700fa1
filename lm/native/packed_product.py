"""The product inside a recurrence, on a CPU: weights packed once, multiplied at every step.

    u_t = r_{t-1} W        W [K, N], as panels of 16 columns, [ceil(N / 16), K, 16], zeros past N

A few rows times megabytes of weights: W is read from end to end at every step. XLA lays it out anew
each time; packed before the loop it streams through the processor. What each size gains is in
experiments/speed/NOTES.md.
"""

from typing import NamedTuple

import jax
from jax import lax

from lm.native.calls import call, like, serves, unless_transformed
from lm.products import dot

COLUMNS = 16  # of a panel, as in packed_product.c
LEAST_ROWS = 4  # with fewer, a product is bound by reading W, however it lies
LEAST_STEPS = 8  # that share the packing: each saves some fifth of what it takes


class Packed(NamedTuple):
    """A matrix for `multiply`, in both layouts; what is not used is never made."""

    panels: jax.Array  # [ceil(N / 16), K, 16]
    plain: jax.Array  # [K, N]


def pack_weights(w: jax.Array, time_batch: tuple[int, ...]) -> jax.Array | Packed:
    """W [K, N], packed where products of B rows at T steps are faster so."""
    return Packed(pack(w), w) if pays(w, *time_batch) else w


def pack_transposed_weights(w: jax.Array, time_batch: tuple[int, ...]) -> jax.Array | Packed:
    """`pack_weights` of W^T, given W."""
    return Packed(pack_transposed(w), w.T) if pays(w, *time_batch) else w.T


def pays(w: jax.Array, steps: int, rows: int) -> bool:
    """Whether so many products of so many rows with W are faster with W packed.

    Never but on a CPU, in float32, where there is a C compiler.
    """
    return steps >= LEAST_STEPS and rows >= LEAST_ROWS and w.size > 0 and serves(w)


def multiply(x: jax.Array, w: Packed) -> jax.Array:
    """x W. [B, K], Packed of [K, N] -> [B, N]."""
    run = unless_transformed(multiply_packed, multiply_plain) if serves(x) else multiply_plain
    product: jax.Array = run(x, w)
    return product


def multiply_plain(x: jax.Array, w: Packed) -> jax.Array:
    """`multiply` by XLA."""
    return dot(x, w.plain)


def multiply_packed(x: jax.Array, w: Packed) -> jax.Array:
    """`multiply` in C."""
    results = like(x, len(x), w.plain.shape[1]), like(x, x.size)
    product: jax.Array = call("packed_product", results, x, w.panels)[0]
    return product


def pack(w: jax.Array) -> jax.Array:
    """W [K, N] -> its panels. Not to be differentiated."""
    panels: jax.Array = call("pack", panels_like(w, *w.shape), lax.stop_gradient(w))
    return panels


def pack_transposed(w: jax.Array) -> jax.Array:
    """W [N, K] -> the panels of W^T [K, N]."""
    size = panels_like(w, *w.shape[::-1])
    panels: jax.Array = call("pack_transposed", size, lax.stop_gradient(w))
    return panels


def panels_like(w: jax.Array, depth: int, width: int) -> jax.ShapeDtypeStruct:
    """The shape and type of the panels of a matrix [depth, width]."""
    return like(w, -(-width // COLUMNS), depth, COLUMNS)
