"""What gradient_flow measures: one recurrent layer, the inputs it reads, and a loss above it.

A language model on text gives its top layer, the layer below as its inputs, and the next word's
cross-entropy. Noise gives a layer as it starts, white inputs and a random cotangent. A task of
`lm.tasks` gives its sequences and the loss of its own readout.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.task_training import TaskParams
from lm import model
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams, init_params
from lm.config import ModelConfig
from lm.data.batches import cut_windows
from lm.gradients.flow import loss_gradient, run_model
from lm.recurrence import unroll
from lm.tasks import Task


class Subject(NamedTuple):
    """One network at one moment, all arrays."""

    layer: CellParams
    x: jax.Array  # the layer's inputs [T, B, D]
    d_h: jax.Array  # dL_t/dh_t of a loss at each of the lengths asked for, [lengths, B, H]


def cut_stretches(tokens: np.ndarray, lags: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` stretches of `lags` tokens of a text: inputs and targets, int32 [lags, stretches].

    Raises:
      ValueError: the text is too short, said in the words of gradient_flow's options.
    """
    if lags >= len(tokens):
        raise ValueError(
            f"lags is {lags}; wanted fewer than the {len(tokens)} tokens of the validation text"
        )
    return cut_windows(tokens, lags, count)


def text_subject(
    config: ModelConfig,
    params: model.Params,
    inputs: jax.Array,
    targets: jax.Array,
    lengths: tuple[int, ...],
) -> Subject:
    """The top layer of a language model that reads stretches of text, int [T, B].

    The loss at length t is the cross-entropy of the token after the t-th.
    """
    carry = model.init_carry(config, inputs.shape[1], params.embedding.dtype)
    forward = run_model(config, params, carry, inputs)
    embedded = jnp.take(params.embedding, inputs, axis=0)
    x = forward.traces[-2].h if config.layers > 1 else embedded
    at = [length - 1 for length in lengths]
    d_h = jax.lax.map(lambda t: loss_gradient(params, forward.h[t], targets[t]), jnp.asarray(at))
    return Subject(params.layers[-1], x, d_h)


def noise_subject(
    config: ModelConfig, key: jax.Array, time: int, rows: int, lengths: tuple[int, ...]
) -> Subject:
    """A layer at its start, x ~ N(0, input_scale^2), dL_t/dh_t ~ N(0, 1), all float32."""
    keys = jax.random.split(key, 3)
    layer = init_params(
        keys[0],
        CELLS[config.cell],
        config.embedding_size,
        config.hidden_size,
        forget_bias=config.forget_bias,
        recurrent_gain=config.recurrent_gain,
        recurrent_init=config.recurrent_init,
        chrono=config.chrono,
    )
    x = jax.random.normal(keys[1], (time, rows, config.embedding_size), jnp.float32)
    d_h = jax.random.normal(keys[2], (len(lengths), rows, config.hidden_size), jnp.float32)
    return Subject(layer, x * config.input_scale, d_h)


def task_subject(
    cell: Cell, task: Task, params: TaskParams, rows: int, lengths: tuple[int, ...]
) -> Subject:
    """A layer on fresh sequences of a task; the loss is its readout's, asked at each length."""
    sample = task.sample(jax.random.key(0), rows)
    state = cell.init_state(rows, params.layer.w_h.shape[0])
    _, h = unroll(cell, params.layer, state, sample.inputs)

    def one_length(t: jax.Array) -> jax.Array:
        def loss(h_t: jax.Array) -> jax.Array:
            out = h_t @ params.readout_w + params.readout_b[None]
            if task.loss == "squared":
                return jnp.sum((out[:, 0] - sample.targets[t]) ** 2)
            return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(out, sample.targets[t]))

        return jax.grad(loss)(h[t])

    return Subject(params.layer, sample.inputs, jax.lax.map(one_length, jnp.asarray(lengths) - 1))


def cast(tree: Any, dtype: str) -> Any:
    """Floating point leaves in another dtype; float64 only inside `jax.enable_x64`."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
