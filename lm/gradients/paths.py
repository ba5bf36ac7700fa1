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
from lm.cells.feedback import send_back
from lm.linalg import full_precision
from lm.log_space import Scaled, common_scale, log_norm, rescale
from lm.scans import Trace, product, pull_back_step, select, transposed_weights


class Part(NamedTuple):
    """One part of dL/ds_t, t = 1 .. T: exp(log) * unit."""

    log: jax.Array  # scale [T, B], nats; -inf where the part is exactly zero
    unit: Any  # state fields [T, B, H]
    log_norm: jax.Array  # of all fields jointly [T, B], nats


class Paths(NamedTuple):
    """dL/ds_t in two parts, which sum to it. Each has a scale of its own."""

    carried: Part  # by elementwise factors alone since the loss
    recurrent: Part  # through W_h at least once


@full_precision
def measure_paths(cell: Cell, params: CellParams, trace: Trace, injected: Scaled) -> Paths:
    """Measure 16: both parts in one backward pass.

    Args:
      trace: of the forward pass.
      injected: dL/dh_t from above at every t, as `lm.gradients.flow.pull_back_log` takes it.
    """
    w_transposed = transposed_weights(cell, params.w_h, trace.h.shape[:2])
    batch, hidden = trace.h_first.shape
    zero = cell.init_state(batch, hidden, trace.h.dtype)

    def back(carry: Any, inputs: Any) -> tuple[Any, Paths]:
        (log_c, carried), (log_r, recurrent) = carry
        log_in, unit_in, tape_t, mask_t = inputs
        log_c, keep, add = common_scale(log_c, log_in)
        carried = jax.tree.map(lambda s: s * keep[:, None], carried)
        carried = carried._replace(h=carried.h + unit_in * add[:, None])
        emitted = Paths(
            Part(log_c, carried, log_c + joint_log_norm(carried)),
            Part(log_r, recurrent, log_r + joint_log_norm(recurrent)),
        )
        pulled = cell.pull_back(tape_t, select(mask_t, carried, zero))
        along = select(mask_t, pulled.state, carried)
        beyond, _ = pull_back_step(cell, w_transposed, tape_t, mask_t, recurrent)
        # What the carried part sends through W_h belongs to the other from here on.
        log_r, keep, add = common_scale(log_r, log_c)
        beyond = jax.tree.map(lambda s: s * keep[:, None], beyond)
        crossing = product(pulled.u, w_transposed)
        beyond = send_back(cell, beyond, crossing * add[:, None])
        return (rescale(log_c, along), rescale(log_r, beyond)), emitted

    nothing = jnp.full(batch, -jnp.inf, trace.h.dtype)
    inputs = (injected.log, injected.unit, trace.tape, trace.mask)
    return lax.scan(back, ((nothing, zero), (nothing, zero)), inputs, reverse=True)[1]


def joint_log_norm(state: Any) -> jax.Array:
    """log norm of all fields of a state together. Fields [B, H] -> [B]."""
    return log_norm(jnp.concatenate(jax.tree.leaves(state), axis=-1))
