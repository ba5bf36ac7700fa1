"""The gradient of the shared recurrent weights, taken apart by time.

dL/dW_h = sum over t of G_t,    G_t = sum over b of h_{t-1,b} delta_t,b^T

G_t is the gradient of the copy of W_h that step t would have if the copies were untied. No
G_t is formed: inner products of them are products of the inner products of their factors.

Source: Pascanu, Mikolov, Bengio 2013 (arXiv:1211.5063), equations 3 and 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.cells.cell import Cell
from lm.cells.feedback import wires
from lm.linalg import full_precision
from lm.log_space import Scaled
from lm.scans import Trace, previous_read


class Gram(NamedTuple):
    """Inner products of the components: <G_t, G_s> = exp(log[t] + log[s]) cosine[t, s]."""

    log: jax.Array  # log ||G_t||_F, nats [T]
    cosine: jax.Array  # [T, T]; 0 where a component is 0


class Truncation(NamedTuple):
    """The gradient of k steps of truncated BPTT beside the full one, k = 1 .. T, each [T]."""

    cosine: jax.Array
    log_ratio: jax.Array  # log of ||truncated|| / ||full||, nats


@full_precision
def temporal_gram(cell: Cell, trace: Trace, delta: Scaled) -> Gram:
    """Measure 4: all inner products of the temporal components of one layer's dL/dW_h.

    <G_t, G_s> = sum over b, b' of (delta_tb . delta_sb') (h_{t-1,b} . h_{s-1,b'})

    and with feedback the sum of that over the blocks of W that are parameters.

    Args:
      trace: of the forward pass, B rows.
      delta: dL/du_t of the same rows, log [T, B] and unit [T, B, K].
    """
    read = previous_read(trace)
    blocks = wires(cell, trace.h.shape[-1])
    scale = jnp.max(delta.log, axis=1)  # one scale a step, so that rows can be summed
    finite = jnp.where(jnp.isneginf(scale), 0, scale)
    scaled = delta.unit * jnp.exp(delta.log - finite[:, None])[..., None]

    def row(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        d_t, r_t = one
        inner = jnp.zeros(len(read), read.dtype)
        for rows, columns in blocks:
            deltas = jnp.einsum("bk,sck->sbc", d_t[:, columns], scaled[..., columns])
            states = jnp.einsum("br,scr->sbc", r_t[:, rows], read[..., rows])
            inner += jnp.sum(deltas * states, axis=(1, 2))
        return inner

    inner = lax.map(row, (scaled, read))  # [T, T] in units of exp(scale_t + scale_s)
    square = jnp.maximum(jnp.diagonal(inner), 0)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    there = square > 0
    cosine = jnp.where(there[:, None] & there[None], inner / (norm[:, None] * norm[None]), 0)
    return Gram(jnp.where(there, finite + jnp.log(norm), -jnp.inf), cosine)


def weighted(gram: Gram) -> tuple[jax.Array, jax.Array]:
    """(scale [], Gram matrix in units of exp(2 scale), newest step first [T, T])."""
    largest = jnp.max(gram.log)
    scale = jnp.where(jnp.isneginf(largest), 0, largest)
    size = jnp.exp(gram.log - scale)
    return scale, (gram.cosine * size[:, None] * size[None])[::-1, ::-1]


def total_log_norm(gram: Gram) -> jax.Array:
    """log ||dL/dW_h||_F = log of the root of the Gram matrix's sum, nats []."""
    scale, matrix = weighted(gram)
    return scale + jnp.log(jnp.maximum(jnp.sum(matrix), 0)) / 2


def lag_shares(gram: Gram) -> jax.Array:
    """Each lag's share of dL/dW_h: <G_{T-lag}, G> / ||G||^2, lags 0 .. T - 1; they sum to 1.

    NaN where the whole gradient is 0. A share is negative where a step pulls against the sum.
    """
    _, matrix = weighted(gram)
    rows = jnp.sum(matrix, axis=1)
    return rows / jnp.sum(rows)


def measure_truncation(gram: Gram) -> Truncation:
    """Measure 13: what truncated BPTT of k steps loses, for every k at once.

    The truncated gradient of L_T is the sum of G_t over lags below k. NaN ratios where the whole
    gradient is 0.
    Source: Tallec and Ollivier 2017 (arXiv:1705.08209).
    """
    _, matrix = weighted(gram)
    own = jnp.diagonal(jnp.cumsum(jnp.cumsum(matrix, axis=0), axis=1))  # ||sum of the last k||^2
    with_all = jnp.cumsum(jnp.sum(matrix, axis=1))
    full = own[-1]
    size = jnp.sqrt(jnp.maximum(own, 0) * full)
    cosine = jnp.where(size > 0, with_all / jnp.where(size > 0, size, 1), 0)
    return Truncation(cosine, jnp.log(jnp.maximum(own, 0) / full) / 2)
