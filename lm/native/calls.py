"""Calls of the compiled functions from JAX: when, how, and what stands in for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.native.library import PREFIX, load_library


def serves(*arrays: jax.Array) -> bool:
    """Whether the functions of this folder take these arrays: float32, on a CPU, compiled."""
    float32 = all(array.dtype == jnp.float32 for array in arrays)
    return float32 and jax.default_backend() == "cpu" and load_library()


def call(name: str, results: Any, *arguments: jax.Array, aliases: Any = None) -> Any:
    """What a function of the library makes of arrays; one after another under vmap.

    Args:
      results: shapes and types, as `like` gives them.
      aliases: {argument: result that takes its place in memory}.
    """
    function = jax.ffi.ffi_call(
        PREFIX + name, results, vmap_method="sequential", input_output_aliases=aliases
    )
    return function(*arguments)


def unless_transformed(function: Callable[..., Any], plain: Callable[..., Any]) -> Any:
    """`function`, but under vmap, and to be differentiated, `plain`: the same in JAX."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def run_several(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
        found = jax.vmap(plain, axes, axis_size=size)(*args)
        return found, jax.tree.map(lambda _: True, found)

    whole = jax.custom_jvp(mapped)

    @whole.defjvp
    def run_forward(args: Any, tangents: Any) -> tuple[Any, Any]:
        return jax.jvp(plain, args, tangents)

    return whole


def like(array: jax.Array, *shape: int) -> jax.ShapeDtypeStruct:
    """A shape, with the type of an array."""
    return jax.ShapeDtypeStruct(shape, array.dtype)
