"""What a longer text costs a recurrent model: time, step after step, and no parameter at all."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import model
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams
from lm.config import ModelConfig
from lm.recurrence import unroll

ROUNDS = 8  # in which everything is measured again
SECONDS = 0.003  # that one measurement is repeated for in each, once at least


def run_layers(cell: Cell, layers: tuple[CellParams, ...], x: jax.Array) -> jax.Array:
    """The stack of recurrent layers from the zero state. x [T, B, D] -> h [T, B, H]."""
    for layer in layers:
        state = cell.init_state(x.shape[1], layer.w_h.shape[0], x.dtype)
        _, x = unroll(cell, layer, state, x)
    return x


def measure_times(
    config: ModelConfig, params: model.Params, lengths: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Wall time of the recurrent layers against the length of a text, best of several runs.

    Returns:
      A row a length: `forward` and `both` (forward and backward) for one text of that many
      tokens, `side_by_side` for the forward pass of as many tokens that do not wait for each
      other (one step of a batch of that size: the same arithmetic), in seconds; and
      `parameters`, how many numbers of the model served that length.
    """
    cell = CELLS[config.cell]
    forward = jax.jit(partial(run_layers, cell))

    def loss(layers: tuple[CellParams, ...], x: jax.Array) -> jax.Array:
        return jnp.mean(run_layers(cell, layers, x) ** 2)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    calls: dict[Any, Callable[[], Any]] = {}
    for length in lengths:
        x = jax.random.normal(jax.random.key(0), (length, 1, config.embedding_size))
        calls[length, "forward"] = partial(forward, params.layers, x)
        calls[length, "both"] = partial(both, params.layers, x)
        calls[length, "side_by_side"] = partial(forward, params.layers, jnp.swapaxes(x, 0, 1))
    best = best_times(calls)
    return [
        {
            "length": length,
            **{what: best[length, what] for what in ("forward", "both", "side_by_side")},
            "parameters": model.count_parameters(params),
        }
        for length in lengths
    ]


def best_times(calls: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Seconds of the fastest of several rounds of each; what else the machine does only adds.

    In rounds, so that a busy second does not fall on one of them alone.
    """
    for call in calls.values():
        jax.block_until_ready(call())  # compiles
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            until = time.perf_counter() + SECONDS
            while (start := time.perf_counter()) < until:
                jax.block_until_ready(call())
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def time_slope(lengths: np.ndarray, seconds: np.ndarray, least: int) -> float:
    """d log time / d log length over lengths of at least `least`: 1 is time per step."""
    long = lengths >= least
    if long.sum() < 2:
        long[-2:] = True
    return float(np.polyfit(np.log(lengths[long]), np.log(seconds[long]), 1)[0])


def window_core(context: int, embedding: int, hidden: int) -> int:
    """Parameters between embedding and softmax of a neural model with a fixed window of words.

    One hidden layer that sees `context` embeddings side by side: (context D + 1) H.

    Source: Bengio et al. 2003 (JMLR 3), section 2, without the direct connections.
    """
    return (context * embedding + 1) * hidden


def table_log10(context: int, vocabulary: int) -> float:
    """log10 of an n-gram table's free entries: V - 1 for each of V^context contexts."""
    return float(context * np.log10(vocabulary) + np.log10(vocabulary - 1))


def count_sizes(
    models: dict[str, tuple[ModelConfig, model.Params]], lengths: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Parameters against the length of the context: a row a length.

    For each cell the number in all, the same in every row, and `_core`, those of its recurrent
    layers; `window` likewise, with the first model's embedding, hidden size and vocabulary
    (embedding V D, softmax (H + 1) V, untied); `table_log10` of an n-gram table.
    """
    config, params = next(iter(models.values()))
    vocabulary = len(params.embedding)
    embedding, hidden = config.embedding_size, config.layer_sizes[-1]
    own = {}
    for cell, (_, found) in models.items():
        own[cell] = model.count_parameters(found)
        own[f"{cell}_core"] = sum(leaf.size for leaf in jax.tree.leaves(found.layers))
    rows = []
    for length in lengths:
        core = window_core(length, embedding, hidden)
        rows.append(
            {
                "length": length,
                **own,
                "window": vocabulary * embedding + core + (hidden + 1) * vocabulary,
                "window_core": core,
                "table_log10": table_log10(length, vocabulary),
            }
        )
    return rows
