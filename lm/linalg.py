"""QR and singular values that run anywhere, several at once.

JAX's own on a CPU are LAPACK calls, and before JAX 0.11 each of those waits inside XLA's thread
pool for work that it puts into the same pool: as many at once as there are cores (the gates of
one LSTM, seeds side by side) wait for each other for ever. Seen with JAX 0.10.2 on two cores:
a batch of QRs hung within seconds. Python 3.11 has no later JAX, so there these are written out
in plain array operations; later ones call `jnp.linalg`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

LAPACK_IS_SAFE = jax.__version_info__ >= (0, 11)
MOST_SWEEPS = 40  # of Jacobi rotations; six to ten suffice

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Matrix products inside in full float32: a GPU or TPU rounds their inputs by default."""

    @wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped


@full_precision
def qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A = Q R with a non-negative diagonal of R, which makes it unique. [n, k], n >= k.

    Returns:
      (Q [n, k], R [k, k]).
    """
    q, r = jnp.linalg.qr(a) if LAPACK_IS_SAFE else householder_qr(a)
    signs = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(a.dtype)
    return q * signs[None, :], r * signs[:, None]


def orthogonal(key: jax.Array, size: int, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """A random orthogonal matrix [size, size], every rotation equally likely (Haar measure).

    Source: Mezzadri 2007 (arXiv:math-ph/0609050): Q of a Gaussian matrix, R's signs made positive.
    """
    return qr(jax.random.normal(key, (size, size), dtype))[0]


@full_precision
def singular_values(a: jax.Array) -> jax.Array:
    """Singular values of [n, n], descending."""
    if LAPACK_IS_SAFE:
        return jnp.linalg.svd(a, compute_uv=False)
    return jacobi_singular_values(a)


@full_precision
def spectral_norm(a: jax.Array) -> jax.Array:
    """The largest singular value of [n, m]."""
    square = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    return singular_values(a)[0] if a.shape[0] == a.shape[1] else singular_values(square)[0] ** 0.5


@full_precision
@jax.jit  # outside of a jit too, where a scan would be compiled anew at every call
def householder_qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """QR by Householder reflections, one a column. Source: Golub & Van Loan 2013, section 5.2."""
    rows = jnp.arange(a.shape[0])

    def reflect(r: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.where(rows >= j, lax.dynamic_index_in_dim(r, j, axis=1, keepdims=False), 0)
        largest = jnp.max(jnp.abs(x))
        x = x / jnp.where(largest > 0, largest, 1)  # before it is squared
        head = x[j]
        v = x + jnp.where(rows == j, jnp.where(head < 0, -1, 1) * jnp.sqrt(x @ x), 0)
        square = v @ v
        v = v * jnp.where(square > 0, jnp.sqrt(2 / jnp.where(square > 0, square, 1)), 0)
        return r - v[:, None] * (v @ r)[None, :], v

    r, mirrors = lax.scan(reflect, a, jnp.arange(a.shape[1]))
    start = jnp.eye(a.shape[0], a.shape[1], dtype=a.dtype)
    back = lambda q, v: (q - v[:, None] * (v @ q)[None, :], None)  # noqa: E731
    q, _ = lax.scan(back, start, mirrors, reverse=True)
    return q, jnp.triu(r[: a.shape[1]])


@jax.jit
def jacobi_singular_values(a: jax.Array) -> jax.Array:
    """One-sided Jacobi: rotate pairs of columns until all are orthogonal; their norms are left.

    All pairs meet once a sweep, n / 2 at a time, as in a round-robin tournament. Each pair is
    scaled before it is squared: small values keep their relative accuracy where it is the
    columns that differ in scale.

    Source: Brent & Luk 1985; Demmel & Veselic 1992.
    """
    size = a.shape[0]
    largest = jnp.max(jnp.abs(a))
    safe = jnp.where(largest > 0, largest, 1)
    columns = jnp.pad(a / safe, ((0, 0), (0, size % 2)))
    half = columns.shape[1] // 2
    tolerance = size * jnp.finfo(a.dtype).eps

    def meet(_: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        left, right, worst = carry
        tall, wide = (jnp.max(jnp.abs(side), axis=0) for side in (left, right))
        there = (tall > 0) & (wide > 0)
        tall, wide = jnp.where(there, tall, 1), jnp.where(there, wide, 1)
        first, second = left / tall[None, :], right / wide[None, :]
        alpha, beta = jnp.sum(first**2, axis=0), jnp.sum(second**2, axis=0)
        gamma = jnp.sum(first * second, axis=0)
        cosine = jnp.abs(gamma) / jnp.sqrt(jnp.where(there, alpha * beta, 1))
        turn = (gamma != 0) & there
        ratio = wide / tall
        zeta = (beta * ratio - alpha / ratio) / (2 * jnp.where(turn, gamma, 1))
        t = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.sqrt(1 + zeta**2))
        c = jnp.where(turn, 1 / jnp.sqrt(1 + t**2), 1)[None, :]
        s = jnp.where(turn, t, 0)[None, :] * c
        left, right = c * left - s * right, s * left + c * right
        worst = jnp.maximum(worst, jnp.max(jnp.where(turn, cosine, 0)))
        if half == 1:
            return left, right, worst
        # The first column stays where it is, the others move one place round.
        return (
            jnp.concatenate([left[:, :1], right[:, :1], left[:, 1:-1]], axis=1)[:, :half],
            jnp.concatenate([right[:, 1:], left[:, -1:]], axis=1),
            worst,
        )

    def sweep(carry: Any) -> Any:
        count, left, right, _ = carry
        start = (left, right, jnp.zeros((), a.dtype))
        return count + 1, *lax.fori_loop(0, 2 * half - 1, meet, start)

    def unfinished(carry: Any) -> jax.Array:
        return (carry[0] < MOST_SWEEPS) & (carry[3] > tolerance)

    begin = (
        jnp.zeros((), jnp.int32),
        columns[:, :half],
        columns[:, half:],
        jnp.full((), jnp.inf, a.dtype),
    )
    _, left, right, _ = lax.while_loop(unfinished, sweep, begin)
    rotated = jnp.concatenate([left, right], axis=1)
    tallest = jnp.max(jnp.abs(rotated), axis=0)
    scaled = rotated / jnp.where(tallest > 0, tallest, 1)[None, :]
    norms = tallest * jnp.sqrt(jnp.sum(scaled**2, axis=0))
    return safe * jnp.sort(norms)[::-1][:size]
