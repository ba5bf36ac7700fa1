"""The gradient split by its path: along the elementwise carry, or through the recurrent product.

For an LSTM the first is the path through c, the constant error carousel, and the second all
that has been through h, W_h and the gates at least once.

Source: Arpit et al. 2019 (h-detach, arXiv:1810.03023); Hochreiter and Schmidhuber 1997.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.cells.cell import Cell, CellParams
from lm.log_space import Scaled, common_scale, log_norm, rescale
from lm.recurrence import Trace, pull_back_step, select


class Paths(NamedTuple):
    """dL/ds_t in two parts, t = 1 .. T. The parts are exp(log) * unit and sum to dL/ds_t."""

    log: jax.Array  # common scale [T, B], nats
    carried: Any  # by elementwise factors alone since the loss; state fields [T, B, H]
    recurrent: Any  # through W_h at least once
    log_carried: jax.Array  # log of the norm of each part, all fields jointly [T, B]
    log_recurrent: jax.Array


def measure_paths(cell: Cell, params: CellParams, trace: Trace, injected: Scaled) -> Paths:
    """Measure 16: both parts in one backward pass.

    Args:
      trace: of the forward pass.
      injected: dL/dh_t from above at every t, as `lm.gradients.flow.pull_back_log` takes it.
    """
    w_h_transposed = params.w_h.T
    batch, hidden = trace.h_first.shape
    zero = cell.init_state(batch, hidden, trace.h.dtype)

    def back(carry: Any, inputs: Any) -> tuple[Any, Paths]:
        log, carried, recurrent = carry
        log_in, unit_in, tape_t, mask_t = inputs
        log, keep, add = common_scale(log, log_in)
        carried, recurrent = jax.tree.map(lambda s: s * keep[:, None], (carried, recurrent))
        carried = carried._replace(h=carried.h + unit_in * add[:, None])
        emitted = Paths(
            log, carried, recurrent, *(log + joint_log_norm(s) for s in (carried, recurrent))
        )
        pulled = cell.pull_back(tape_t, select(mask_t, carried, zero))
        along = select(mask_t, pulled.state, carried)
        beyond, _ = pull_back_step(cell, w_h_transposed, tape_t, mask_t, recurrent)
        beyond = beyond._replace(h=beyond.h + pulled.u @ w_h_transposed)
        log, both = rescale(log, (along, beyond))
        return (log, *both), emitted

    nothing = jnp.full(batch, -jnp.inf, trace.h.dtype)
    inputs = (injected.log, injected.unit, trace.tape, trace.mask)
    return lax.scan(back, (nothing, zero, zero), inputs, reverse=True)[1]


def joint_log_norm(state: Any) -> jax.Array:
    """log norm of all fields of a state together. Fields [B, H] -> [B]."""
    return log_norm(jnp.concatenate(jax.tree.leaves(state), axis=-1))
