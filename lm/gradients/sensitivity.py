"""Forward sensitivity ds_t/dparams, and Pascanu's regulariser.

The two faces of memory: a recurrence whose gradient does not vanish is one whose state grows
ever more sensitive to its recurrent parameters (the curse of memory).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.linalg import full_precision
from lm.log_space import common_scale, log_norm, rescale
from lm.recurrence import Step


@full_precision
def state_sensitivity(
    step: Step, params: Any, state: Any, x: jax.Array, direction: Any
) -> jax.Array:
    """Measure 15: log ||(ds_t/dparams) v|| for every t, in one forward pass.

    S_t = J_t S_{t-1} + ds_t/dparams|direct,    S_0 = 0

    E over v ~ N(0, I) of ||S v||^2 is ||S||_F^2: average over draws for the whole. For a scalar
    recurrence h_t = lambda h_{t-1} + x_t with x ~ N(0, 1) and v = 1, E of the square goes to
    (1 + lambda^2) / (1 - lambda^2)^3.

    Args:
      state: s_0, leaves [B, ...].
      x: [T, B, D].
      direction: v, a pytree like params; zero where a parameter is to stay out of it.

    Returns:
      [T, B] nats, all leaves of the state jointly; -inf where the state does not move.

    Source: Zucchet and Orvieto 2024 (arXiv:2405.21064).
    """
    rows = jax.tree.leaves(state)[0].shape[0]
    dtype = jax.tree.leaves(state)[0].dtype

    def one_row(s_0: Any, x_row: jax.Array) -> jax.Array:
        def scan_step(carry: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
            s, log, tangent = carry
            log, keep, add = common_scale(log, jnp.zeros_like(log))
            tangents = (
                jax.tree.map(lambda v: v * add[0], direction),
                jax.tree.map(lambda leaf: leaf * keep[0], tangent),
            )
            new, tangent = jax.jvp(lambda p, s: step(p, s, x_t)[0], (params, s), tangents)
            flat = jax.tree.map(lambda leaf: leaf.reshape(1, -1), tangent)
            log, flat = rescale(log, flat)
            norm = log + log_norm(jnp.concatenate(jax.tree.leaves(flat), axis=1))
            tangent = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), flat, tangent)
            return (new, log, tangent), norm[0]

        start = (s_0, jnp.full(1, -jnp.inf, dtype), jax.tree.map(jnp.zeros_like, s_0))
        return lax.scan(scan_step, start, x_row)[1]

    split = jax.tree.map(lambda leaf: leaf.reshape(rows, 1, *leaf.shape[1:]), state)
    return jax.vmap(one_row, in_axes=(0, 1), out_axes=1)(split, x[:, :, None])


def pascanu_omega(log_norms: jax.Array) -> jax.Array:
    """Measure 14: Omega per lag, (||dL/ds_{t+1} J_{t+1}|| / ||dL/ds_{t+1}|| - 1)^2.

    0 where a step back keeps the gradient's norm; an orthogonal linear RNN has 0 at every lag.

    Args:
      log_norms: a lag curve of a loss at the last step, [lags, ...], nats.

    Returns:
      [lags - 1, ...]; entry l compares lag l + 1 with lag l. NaN where the gradient is dead.

    Source: Pascanu, Mikolov, Bengio 2013 (arXiv:1211.5063), section 3.3.
    """
    return jnp.expm1(log_norms[1:] - log_norms[:-1]) ** 2
