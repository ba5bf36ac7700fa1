"""Jacobians of the state, J_t = ds_t/ds_{t-1}, and their products ds_T/ds_t.

For any `step(params, state, x_t) -> (state, h_t)`; the state is all of its leaves together, in
tree order (an LSTM's c, then h): N numbers a row.

Source: Pascanu, Mikolov, Bengio 2013 (arXiv:1211.5063), equations 5 to 7; Saxe, McClelland,
Ganguli 2014 (arXiv:1312.6120) for the spectrum of the product.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from lm.linalg import full_precision, qr, singular_values, spectral_norm
from lm.log_space import log_norm
from lm.recurrence import Step

MOST_SWEEPS = 200  # of QR over a product; two or three suffice beyond a range of 30 nats


def run_states(step: Step, params: Any, state: Any, x: jax.Array) -> Any:
    """s_0 .. s_T, leaves [T + 1, B, ...]. x [T, B, D]."""

    def scan_step(s: Any, x_t: jax.Array) -> tuple[Any, Any]:
        new, _ = step(params, s, x_t)
        return new, new

    _, states = lax.scan(scan_step, state, x)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states)


def row_map(
    step: Step, params: Any, state: Any
) -> tuple[jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]:
    """The step as a map of flat states: ([B, N] of s_0, (flat [N], x_t [D]) -> flat [N])."""
    _, unflatten = ravel_pytree(jax.tree.map(lambda leaf: leaf[:1], state))

    def advance(flat: jax.Array, x_t: jax.Array) -> jax.Array:
        return ravel_pytree(step(params, unflatten(flat), x_t[None])[0])[0]

    return flatten_rows(state), advance


def flatten_rows(state: Any) -> jax.Array:
    """All leaves of a state side by side: leaves [B, ...] -> [B, N]."""
    return jnp.concatenate(
        [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(state)], axis=1
    )


@full_precision
def state_jacobians(step: Step, params: Any, state: Any, x: jax.Array) -> jax.Array:
    """J_t = ds_t/ds_{t-1} for t = 1 .. T along the path that x drives from s_0.

    Args:
      state: s_0, leaves [B, ...].
      x: [T, B, D].

    Returns:
      [T, B, N, N], row i column j: ds_t[i] / ds_{t-1}[j].
    """
    first, advance = row_map(step, params, state)

    def scan_step(flat: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(advance)(flat, x_t), jax.vmap(jax.jacfwd(advance))(flat, x_t)

    return lax.scan(scan_step, first, x)[1]


class JacobianNorms(NamedTuple):
    """log of norms of ds_T/ds_{T - lag} in nats, lags 0 .. T, each [T + 1, ...]."""

    spectral: jax.Array
    frobenius: jax.Array


@full_precision
def product_log_norms(jacobians: jax.Array) -> JacobianNorms:
    """Measure 2: how much ds_T/ds_{T - lag} can stretch a gradient, and how much on average.

    The product is kept at norm 1 beside a logarithm, so nothing under- or overflows. E over
    unit v of ||J^T v||^2 is ||J||_F^2 / N.

    Args:
      jacobians: J_1 .. J_T, [T, ..., N, N].
    """
    shape = jacobians.shape[1:-2]
    eye = jnp.broadcast_to(jnp.eye(jacobians.shape[-1], dtype=jacobians.dtype), jacobians.shape[1:])

    def step(carry: Any, j_t: jax.Array) -> tuple[Any, Any]:
        log, unit = carry
        log, unit = scale_matrix(log, unit @ j_t)
        return (log, unit), (log, unit)

    zero = jnp.zeros(shape, jacobians.dtype)
    _, (log, unit) = lax.scan(step, (zero, eye), jacobians, reverse=True)
    log = jnp.concatenate([zero[None], log[::-1]])
    unit = jnp.concatenate([eye[None], unit[::-1]])
    largest = lax.map(
        lambda m: jnp.vectorize(singular_values, signature="(n,n)->(n)")(m)[..., 0], unit
    )
    return JacobianNorms(
        spectral=log + jnp.log(largest),
        frobenius=log + log_norm(unit.reshape(*unit.shape[:-2], -1)),
    )


def scale_matrix(log: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divide [..., N, N] by its largest magnitude and add that to log; zeros get -inf."""
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1))
    safe = jnp.where(largest > 0, largest, 1)
    return jnp.where(largest > 0, log + jnp.log(safe), -jnp.inf), matrix / safe[..., None, None]


def pascanu_bound(w_h: jax.Array, lags: jax.Array, gamma: float = 1.0) -> jax.Array:
    """log (gamma sigma_max(W_h))^lag: what ||dh_T/dh_{T - lag}|| of a vanilla RNN never exceeds.

    Args:
      gamma: the largest slope of the activation: 1 for tanh and ReLU, 1/4 for the sigmoid.

    Source: Pascanu et al. 2013, equation 6. Their section 2.1 states it with the spectral
    radius, which is false: see `tests/test_jacobian.py`, where the radius is 0 and the product
    passes 10^6.
    """
    return lags * jnp.log(gamma * spectral_norm(w_h))


def slope_bound(w_h: jax.Array, slopes: jax.Array) -> jax.Array:
    """The tighter bound: log of prod_t max_i phi'(a_t[i]) sigma_max(W_h), lags 0 .. T.

    Args:
      slopes: phi' along the path, [T, B, H]: a vanilla RNN's tape.

    Returns:
      [T + 1, B] nats.
    """
    each = jnp.log(jnp.max(jnp.abs(slopes), axis=-1)) + jnp.log(spectral_norm(w_h))
    total = jnp.cumsum(each[::-1], axis=0)
    return jnp.concatenate([jnp.zeros_like(total[:1]), total])


def log_singular_values(jacobians: jax.Array) -> jax.Array:
    """Measure 6 at one lag: log singular values of J_l ... J_1, descending, in nats. [l, N, N]."""
    return singular_spectrum(jacobians, jnp.asarray([jacobians.shape[0]]))[0]


@full_precision
def singular_spectrum(jacobians: jax.Array, lags: jax.Array) -> jax.Array:
    """Measure 6: log singular values of J_l ... J_1 for each lag l.

    An SVD of the multiplied-out product knows nothing below its largest value times the
    floating point epsilon. Here the factors stay apart: QR goes through them, then through the
    transposed triangular factors in reverse order, and so on until the diagonals, whose logs
    are summed, stop changing. Products whose whole range an SVD does resolve get that.

    Args:
      jacobians: J_1 .. J_T, [T, N, N], in float64 for more than three digits.
      lags: int [n], each from 1 to T.

    Returns:
      [n, N] nats, descending; -inf where a value is exactly 0.

    Source: the QR of a product, as Lyapunov spectra use it: Engelken 2023 (arXiv:2312.17306).
    """
    eye = jnp.eye(jacobians.shape[-1], dtype=jacobians.dtype)

    def through(carry: Any, j_t: jax.Array) -> tuple[Any, Any]:
        q, log, product = carry
        log, product = scale_matrix(log, j_t @ product)
        q, r = qr(j_t @ q)
        return (q, log, product), (r, log, product)

    start = (eye, jnp.zeros((), jacobians.dtype), eye)
    # The forward sweep over a prefix is a prefix of the forward sweep: done once for all lags.
    _, (triangles, logs, products) = lax.scan(through, start, jacobians)

    def one_lag(lag: jax.Array) -> jax.Array:
        swept = sweep_to_convergence(triangles, lag)
        direct = singular_values(products[lag - 1])
        resolved = direct[-1] > direct[0] * jnp.finfo(direct.dtype).eps ** 0.3
        return jnp.where(resolved, logs[lag - 1] + jnp.log(direct), swept)

    return lax.map(one_lag, lags)


def sweep_to_convergence(triangles: jax.Array, lag: jax.Array) -> jax.Array:
    """QR to and fro over the first `lag` triangular factors; the sums of their log diagonals."""
    eye = jnp.eye(triangles.shape[-1], dtype=triangles.dtype)
    tolerance = 100 * jnp.finfo(triangles.dtype).eps

    def sweep(factors: jax.Array) -> jax.Array:
        def one(t: jax.Array, carry: Any) -> Any:
            q, swept = carry
            q, r = qr(factors[lag - 1 - t].T @ q)
            return q, swept.at[t].set(r)

        return lax.fori_loop(0, lag, one, (eye, factors))[1]

    def diagonal(factors: jax.Array) -> jax.Array:
        logs = jnp.log(jnp.abs(jnp.diagonal(factors, axis1=-2, axis2=-1)))
        used = jnp.arange(len(factors)) < lag
        return jnp.where(used[:, None], logs, 0).sum(axis=0)

    def unfinished(carry: Any) -> jax.Array:
        count, _, before, now = carry
        moved = jnp.where(now == before, 0, jnp.abs(now - before))  # two times -inf: not moved
        scale = jnp.maximum(1, jnp.max(jnp.where(jnp.isfinite(now), jnp.abs(now), 0)))
        return (count < MOST_SWEEPS) & (jnp.max(moved) > tolerance * scale)

    def again(carry: Any) -> Any:
        count, factors, _, now = carry
        factors = sweep(factors)
        return count + 1, factors, now, diagonal(factors)

    first = diagonal(triangles)
    begin = (jnp.zeros((), jnp.int32), triangles, jnp.full_like(first, jnp.inf), first)
    found = lax.while_loop(unfinished, again, begin)[3]
    return jnp.sort(found)[::-1]
