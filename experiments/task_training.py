"""Training a cell on a synthetic task: a whole run is one pure function of key and settings.

One recurrent layer, a linear readout, Adam, gradients clipped by their global norm; the samples
of a step come from the run's key folded with the step, so no sequence is seen twice and the
loss of a training step is a loss on unseen data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params
from lm.optim import clip_by_global_norm, global_norm
from lm.recurrence import unroll
from lm.tasks import Sample, Task

BATCH = 32
TEST_BATCHES = 64  # fresh ones, of BATCH sequences, after training


class Hyper(NamedTuple):
    """What differs between runs of one compilation; each a scalar, traced."""

    learning_rate: jax.Array | float
    clip: jax.Array | float  # largest global L2 norm of the gradient; inf: no clipping
    forget_bias: jax.Array | float


@dataclass(frozen=True)
class Network:
    """What is compiled: one layer of a cell and its readout.

    Attributes:
      cell: name in CELLS.
      hidden: H.
      chrono: T_max of chrono initialisation, in place of the forget bias of `Hyper`; 0: none.
      recurrent_init: how W_h starts, a name of RECURRENT_INITS; empty: the cell's own.
      truncation: steps that the gradient goes back: it stops where a chunk of so many starts;
        0: all of them.
      input_std: standard deviation of the input weights at the start; None: 1 / sqrt(inputs),
        which keeps the variance.
      readout_std: likewise of the readout weights; None: 1 / sqrt(hidden).
    """

    cell: str
    hidden: int
    chrono: int = 0
    recurrent_init: str = ""
    truncation: int = 0
    input_std: float | None = None
    readout_std: float | None = None


class TaskParams(NamedTuple):
    """Parameters of one layer and its readout."""

    layer: CellParams
    readout_w: jax.Array  # [H, outputs]
    readout_b: jax.Array  # [outputs]


class TaskRun(NamedTuple):
    """What a run measured; losses in the unit of the task."""

    losses: Any  # on the fresh batch of each step, before it [steps]
    errors: Any  # there, share of wrong classes [steps]; NaN where the answer is a number
    grad_norms: Any  # global L2 norm of each step's gradient, before clipping [steps]
    loss: Any  # after training, on TEST_BATCHES fresh batches []
    error: Any  # there, likewise []
    before: Any = None  # TaskParams at the start
    after: Any = None  # and at the end


TrainTask = Callable[[jax.Array, Hyper], TaskRun]


def init_network(
    key: jax.Array, network: Network, task: Task, forget_bias: jax.Array | float
) -> TaskParams:
    """The cell as `init_params` starts it, the readout likewise, its bias 0."""
    key_layer, key_readout = jax.random.split(key)
    layer = init_params(
        key_layer,
        CELLS[network.cell],
        task.input_size,
        network.hidden,
        forget_bias=forget_bias,
        chrono=network.chrono,
        recurrent_init=network.recurrent_init,
    )
    if network.input_std is not None:
        layer = layer._replace(w_x=layer.w_x * (network.input_std * task.input_size**0.5))
    std = network.hidden**-0.5 if network.readout_std is None else network.readout_std
    readout = std * jax.random.normal(key_readout, (network.hidden, task.outputs))
    return TaskParams(layer, readout, jnp.zeros(task.outputs))


def measure_sample(
    network: Network, task: Task, params: TaskParams, sample: Sample
) -> tuple[jax.Array, jax.Array]:
    """(loss, share of wrong classes), each a mean over the outputs that count."""
    h = run_layer(network, params.layer, sample.inputs)
    out = h.reshape(-1, network.hidden) @ params.readout_w + params.readout_b[None]
    targets, weights = sample.targets.reshape(-1), sample.weights.reshape(-1)
    if task.loss == "squared":
        each = (out[:, 0] - targets) ** 2
        wrong = jnp.full_like(each, jnp.nan)
    else:
        each = optax.softmax_cross_entropy_with_integer_labels(out, targets)
        wrong = (jnp.argmax(out, axis=-1) != targets).astype(out.dtype)
    total = weights.sum()
    return jnp.vdot(weights, each) / total, jnp.vdot(weights, wrong) / total


def run_layer(network: Network, params: CellParams, x: jax.Array) -> jax.Array:
    """Outputs h [T, B, H]; the state that enters a chunk of `network.truncation` is a constant."""
    cell, steps = CELLS[network.cell], network.truncation or len(x)
    state, parts = cell.init_state(x.shape[1], network.hidden), []
    for start in range(0, len(x), steps):
        state, h = unroll(cell, params, lax.stop_gradient(state), x[start : start + steps])
        parts.append(h)
    return jnp.concatenate(parts)


def make_train_task(network: Network, task: Task, steps: int, batch: int = BATCH) -> TrainTask:
    """A whole run, pure: (key, hyper) -> TaskRun. Adam with b1 = 0.9, b2 = 0.999, eps = 1e-8."""
    adam = optax.scale_by_adam()

    def train(key: jax.Array, hyper: Hyper) -> TaskRun:
        key_params, key_train, key_test = jax.random.split(key, 3)
        params = init_network(key_params, network, task, hyper.forget_bias)

        def step(carry: Any, number: jax.Array) -> tuple[Any, Any]:
            params, moments = carry
            sample = task.sample(jax.random.fold_in(key_train, number), batch)
            (loss, error), grads = jax.value_and_grad(
                lambda params: measure_sample(network, task, params, sample), has_aux=True
            )(params)
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32
                updates, moments = adam.update(clip_by_global_norm(grads, hyper.clip), moments)
            params = jax.tree.map(lambda p, u: p - hyper.learning_rate * u, params, updates)
            return (params, moments), (loss, error, global_norm(grads))

        start = (params, adam.init(params))
        (params, _), (losses, errors, norms) = lax.scan(step, start, jnp.arange(steps))
        loss, error = lax.map(
            lambda key: measure_sample(network, task, params, task.sample(key, batch)),
            jax.random.split(key_test, TEST_BATCHES),
        )
        return TaskRun(losses, errors, norms, loss.mean(), error.mean(), start[0], params)

    return train


def run_seeds(train: TrainTask, hyper: Hyper, seeds: int, advance: Callable[[], object]) -> TaskRun:
    """Seeds 0 upward through one compilation; arrays with leading [S].

    One after another: side by side (vmap) they take 1.4 times as long on a CPU, and two at once,
    from two threads, were seen to wait for each other in XLA's thread pool for ever.

    Args:
      train: compiled.
      advance: called after each seed.
    """
    runs = []
    for seed in range(seeds):
        runs.append(jax.device_get(train(jax.random.key(seed), hyper)))
        advance()
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
