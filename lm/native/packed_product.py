"""The product inside a recurrence, on a CPU: weights packed once, multiplied at every step.

    u_t = r_{t-1} W        W [K, N], as panels of 16 columns, [ceil(N / 16), K, 16], zeros past N

A few rows times megabytes of weights: W is read from end to end at every step. XLA lays it out anew
each time; packed before the loop it streams through the processor. What each size gains is in
experiments/speed/NOTES.md.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.native.library import PREFIX, load_library
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
    return Packed(pack(w), w) if is_worth(w, *time_batch) else w


def pack_transposed_weights(w: jax.Array, time_batch: tuple[int, ...]) -> jax.Array | Packed:
    """`pack_weights` of W^T, given W."""
    return Packed(pack_transposed(w), w.T) if is_worth(w, *time_batch) else w.T


def is_worth(w: jax.Array, steps: int, rows: int) -> bool:
    """Whether so many products of so many rows with W are faster packed.

    Never but on a CPU, in float32, where there is a C compiler.
    """
    return (
        steps >= LEAST_STEPS
        and rows >= LEAST_ROWS
        and w.dtype == jnp.float32
        and w.size > 0
        and jax.default_backend() == "cpu"
        and load_library()
    )


@jax.custom_batching.custom_vmap
def multiply(x: jax.Array, w: Packed) -> jax.Array:
    """x W. [B, K], Packed of [K, N] -> [B, N], float32. Under vmap it is XLA's product."""
    results = like(x, len(x), w.plain.shape[1]), like(x, x.size)
    product: jax.Array = call("packed_product", results, x, w.panels)[0]
    return product


@multiply.def_vmap
def _multiply_several(
    size: int, batched: tuple[bool, Packed], x: jax.Array, w: Packed
) -> tuple[jax.Array, bool]:
    axes = [0 if is_batched else None for is_batched in (batched[0], batched[1].plain)]
    return jax.vmap(dot, axes, axis_size=size)(x, w.plain), True


def pack(w: jax.Array) -> jax.Array:
    """W [K, N] -> its panels."""
    panels: jax.Array = call("pack", panels_like(w, *w.shape), w)
    return panels


def pack_transposed(w: jax.Array) -> jax.Array:
    """W [N, K] -> the panels of W^T [K, N]."""
    panels: jax.Array = call("pack_transposed", panels_like(w, *w.shape[::-1]), w)
    return panels


def call(name: str, results: Any, *arguments: jax.Array) -> Any:
    """What a function of the library makes of arrays; one after another under vmap."""
    return jax.ffi.ffi_call(PREFIX + name, results, vmap_method="sequential")(*arguments)


def panels_like(w: jax.Array, depth: int, width: int) -> jax.ShapeDtypeStruct:
    """The shape and type of the panels of a matrix [depth, width]."""
    return like(w, -(-width // COLUMNS), depth, COLUMNS)


def like(array: jax.Array, *shape: int) -> jax.ShapeDtypeStruct:
    """A shape, with the type of an array."""
    return jax.ShapeDtypeStruct(shape, array.dtype)
