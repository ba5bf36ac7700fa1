"""What the gates do: the activations and the state of every step, unit by unit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm import model
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams
from lm.cells.feedback import recurrent_product
from lm.config import ModelConfig
from lm.linalg import full_precision
from lm.recurrence import project

Activations = dict[str, jax.Array]  # gate -> [T, B, H]


@full_precision
def gate_activations(
    cell: Cell, params: CellParams, state: Any, x: jax.Array
) -> tuple[Any, Activations]:
    """Run one layer over a sequence, keeping what training throws away.

    Args:
      state: s_0, fields [B, H].
      x: [T, B, D].

    Returns:
      (states, gates): the state after every step, fields [T, B, H], and each gate's activation
      by name, [T, B, H]; no gates where the cell has none to look at.
    """

    def step(s_prev: Any, z_t: jax.Array) -> tuple[Any, tuple[Any, Activations]]:
        u_t = recurrent_product(cell, s_prev, params.w_h)
        gates = (
            {} if cell.activations is None else cell.activations(params.vectors, s_prev, z_t, u_t)
        )
        s_t = cell.gate(params.vectors, s_prev, z_t, u_t)
        return s_t, (s_t, gates)

    _, (states, gates) = lax.scan(step, state, project(x, params.w_x, params.b))
    return states, gates


@full_precision
def model_gates(
    config: ModelConfig, params: model.Params, carry: model.Carry, tokens: jax.Array
) -> tuple[tuple[Any, Activations], ...]:
    """(states, gates) of every layer of a language model that reads `tokens`, int [T, B]."""
    cell = CELLS[config.cell]
    h = jnp.take(params.embedding, tokens, axis=0)
    found = []
    for layer, state in zip(params.layers, carry, strict=True):
        states, gates = gate_activations(cell, layer, state, h)
        found.append((states, gates))
        h = states.h
    return tuple(found)


def carousel_log_norms(f: jax.Array) -> jax.Array:
    """Measure 3: dc_T/dc_{T - lag} along the constant error carousel, a product of forget gates.

    dc_t/dc_{t-1} = f_t unit by unit where the paths through h are left out; the sum of logs is
    exact however long the product.

    Args:
      f: forget gate [T, B, H].

    Returns:
      log of the product, nats [T + 1, B, H], lags 0 .. T.

    Source: Hochreiter and Schmidhuber 1997 (where f is 1), Gers, Schmidhuber, Cummins 2000.
    """
    newest_first = jnp.cumsum(jnp.log(f[::-1]), axis=0)
    return jnp.concatenate([jnp.zeros_like(f[:1]), newest_first])


def time_scale(f: jax.Array) -> jax.Array:
    """Measure 9: tau = 1 / (1 - f), the steps in which a cell state decays by a factor of e.

    inf where f rounds to 1 (float32: beyond 1.7e7 steps). Source: Tallec and Ollivier 2018
    (arXiv:1804.11188).
    """
    return 1 / (1 - f)


def histogram_shares(values: jax.Array, edges: jax.Array) -> jax.Array:
    """The share of the values in each bin [edges[k], edges[k + 1]), and below and above all.

    Returns:
      [len(edges) + 1], which sum to 1: below the first edge, the bins, from the last edge on.
    """
    bins = jnp.searchsorted(edges, values.reshape(-1), side="right")
    counts = jnp.zeros(len(edges) + 1, values.dtype).at[bins].add(1)
    return counts / values.size


class Saturation(NamedTuple):
    """Shares of a gate's activations near its limits, over time and batch, each [H]."""

    low: jax.Array  # below 0.1
    high: jax.Array  # above 0.9


def gate_saturation(gate: jax.Array, low: float = 0.1, high: float = 0.9) -> Saturation:
    """Measure 10: how often each unit's gate is shut, and how often open. [T, B, H] -> [H].

    Source: Karpathy, Johnson, Fei-Fei 2015 (arXiv:1506.02078).
    """
    dtype = gate.dtype
    return Saturation(
        (gate < low).astype(dtype).mean(axis=(0, 1)), (gate > high).astype(dtype).mean(axis=(0, 1))
    )
