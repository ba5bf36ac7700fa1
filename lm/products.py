"""Matrix products as training wants them: a stated precision, and a backward pass that is fast.

    y = x W + b        dL/dx = d W^T        dL/dW = x^T d        dL/db = 1^T d

Operands are rounded to `dtype`, sums are taken and results given in float32 (in float64 where x
is): bfloat16 doubles a GPU's or TPU's rate, float32 is the default. The gradient of W is that of
the float32 weights: it is not rounded to bfloat16 once more.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

ROWS = (((1,), (0,)), ((), ()))  # a @ b
TRANSPOSED_RIGHT = (((1,), (1,)), ((), ()))  # a @ b.T
TRANSPOSED_LEFT = (((0,), (0,)), ((), ()))  # a.T @ b


def dot(a: jax.Array, b: jax.Array, dtype: Any = None, dimensions: Any = ROWS) -> jax.Array:
    """a @ b with operands in `dtype` (None: as they are) and the result in a's."""
    if dtype is None or dtype == a.dtype:
        return lax.dot_general(a, b, dimensions)
    rounded = a.astype(dtype), b.astype(dtype)
    return lax.dot_general(*rounded, dimensions, preferred_element_type=a.dtype)


def dot_over_words(a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """a @ b.T, as (b @ a.T).T where the sum is over more than a has rows.

    [N, V], [H, V] -> [N, H].

    At N = 700, H = 650 and V = 10,000 XLA's CPU backend takes three quarters of the time so. The
    barrier keeps it from turning the product back.
    """
    if len(a) > a.shape[1]:
        return dot(a, b, dtype, TRANSPOSED_RIGHT)
    return lax.optimization_barrier(dot(b, a, dtype, TRANSPOSED_RIGHT)).T


def column_sums(x: jax.Array) -> jax.Array:
    """sum over n of x[n], [N, K] -> [K], as a product.

    XLA's CPU backend takes up to ten times as long over the reduction: longer, at N = 700 and
    K = 33,000, than over all three products of the softmax. A sum all the same: no setting of the
    products' precision rounds it.
    """
    ones = jnp.ones((1, x.shape[0]), x.dtype)
    return jnp.matmul(ones, x, precision=lax.Precision.HIGHEST)[0]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: jax.Array, w: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """x W + b, or x W where b is empty. [N, D], [D, K], [K] or [0] -> [N, K]."""
    return add_bias(dot(x, w, dtype), b)


def add_bias(y: jax.Array, b: jax.Array) -> jax.Array:
    """y [N, K] + b [K]; y itself where b is empty, [0]."""
    return y + b[None, :] if b.size else y


def _affine_forward(x: jax.Array, w: jax.Array, b: jax.Array, dtype: Any) -> tuple[jax.Array, Any]:
    return affine(x, w, b, dtype), (x, w, b)


def _affine_backward(dtype: Any, residuals: Any, d: jax.Array) -> tuple[jax.Array, ...]:
    x, w, b = residuals
    d_x = dot(d, w, dtype, TRANSPOSED_RIGHT)
    return d_x, dot(x, d, dtype, TRANSPOSED_LEFT), column_sums(d) if b.size else b


affine.defvjp(_affine_forward, _affine_backward)
