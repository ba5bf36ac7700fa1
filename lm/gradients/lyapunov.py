"""Lyapunov exponents of the joint state: the mean rates at which tangents grow or shrink.

lambda_i = lim 1/T sum_t log |R_ii|,   J_t Q_{t-1} = Q_t R_t

Forward mode and independent of any loss: that the largest exponent is the slope of the
gradient's norm, a reverse-mode measure, is a check of both.

Source: Engelken, Wolf, Abbott 2020 (arXiv:2006.02427); Vogt et al. 2020 (arXiv:2006.14123).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.gradients.jacobian import row_map
from lm.linalg import full_precision, orthogonal, qr
from lm.recurrence import Step


@full_precision
def lyapunov_spectrum(
    step: Step,
    params: Any,
    state: Any,
    x: jax.Array,
    *,
    exponents: int | None = None,
    warmup: int = 0,
) -> jax.Array:
    """Measure 7: Lyapunov exponents along the path that x drives, by repeated QR.

    The state is joint: all leaves, an LSTM's c and h. Its h block alone gives another number.

    Args:
      state: s_0, leaves [B, ...], N numbers a row.
      x: [T, B, D].
      exponents: how many, the largest first; None: all N.
      warmup: steps before the mean begins, in which Q aligns itself.

    Returns:
      [B, exponents], nats per step, the largest first in the limit.

    Raises:
      ValueError: warmup leaves no step, or more exponents than the state has numbers.
    """
    flat, advance = row_map(step, params, state)
    batch, size = flat.shape
    count = size if exponents is None else exponents
    if not 0 < count <= size:
        raise ValueError(f"exponents is {count}; wanted 1 to {size}, the numbers in the state")
    if not 0 <= warmup < x.shape[0]:
        raise ValueError(
            f"warmup is {warmup}; wanted 0 to {x.shape[0] - 1}, within the {len(x)} steps"
        )
    # Not the identity: a tangent along an axis may never meet the fastest direction.
    start = orthogonal(jax.random.key(0), size, flat.dtype)[:, :count]

    def push(row: jax.Array, x_t: jax.Array, q: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        new, tangent = jax.linearize(lambda s: advance(s, x_t), row)
        q, r = qr(jax.vmap(tangent, in_axes=1, out_axes=1)(q))
        return new, q, jnp.log(jnp.abs(jnp.diagonal(r)))

    def scan_step(carry: Any, inputs: Any) -> tuple[Any, None]:
        row, q, total = carry
        x_t, counted = inputs
        row, q, logs = jax.vmap(push)(row, x_t, q)
        return (row, q, total + jnp.where(counted, logs, 0)), None

    carry = (
        flat,
        jnp.broadcast_to(start, (batch, size, count)),
        jnp.zeros((batch, count), flat.dtype),
    )
    (_, _, total), _ = lax.scan(scan_step, carry, (x, jnp.arange(len(x)) >= warmup))
    return total / (len(x) - warmup)
