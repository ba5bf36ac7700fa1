"""Ours, as a user's training run does it: lm.train's state and step, one step a dispatch.

As in `train`, a small model's rows are spread over the cores of a CPU.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.speed.contestants.program import Arrays, JaxProgram, own
from experiments.speed.work import Work, draw_batch, draw_layer_batch
from lm.cells import CELLS
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import Batch
from lm.interop.pytorch import export_layer, export_model, import_layer, import_model
from lm.mesh import EVERYWHERE, cores_worth, make_mesh, place, shardings
from lm.model import Params, count_parameters, init_carry
from lm.optim import Hyper
from lm.recurrence import unroll
from lm.train import BATCH, STATE, TrainState, init_state, place_state, train_step


def model_config(work: Work) -> ModelConfig:
    size = work.size
    return ModelConfig(
        cell=work.cell,
        layers=size.layers,
        hidden_size=size.hidden,
        embedding_size=size.hidden,
        precision="bfloat16" if work.precision == "bfloat16" else "float32",
    )


def first_state(work: Work, weights: Arrays) -> TrainState:
    """The state of a run before its first step, with the given weights."""
    config, optim = model_config(work), OptimConfig(clip=work.clip)
    # A model of one unit: with plain SGD, parameters and carry are all that has a model's size.
    tiny = dataclasses.replace(config, hidden_size=1, embedding_size=1)
    state: Any = init_state(jax.random.key(0), tiny, optim, 1, 1)
    params = own(import_model(weights, work.cell).params)
    found: TrainState = state.replace(params=params, carry=init_carry(config, work.size.batch))
    return found


def find_mesh(work: Work, params: Params) -> Mesh | None:
    """The cores of a CPU where `train` would spread the rows over them."""
    size, devices = work.size, jax.local_devices()
    if devices[0].platform != "cpu":
        return None
    tokens = size.batch * size.length
    count = cores_worth(len(devices), size.batch, tokens, count_parameters(params))
    return make_mesh(devices[:count]) if count > 1 else None


def make_step(work: Work, weights: Arrays, steps: int = 1) -> JaxProgram:
    """lm.train.train_step, compiled with its state donated; more than one step in a scan."""
    config, optim = model_config(work), OptimConfig(clip=work.clip)
    state = first_state(work, weights)
    mesh = find_mesh(work, state.params)
    one_step = partial(train_step, config, optim, optax.constant_schedule(1.0), mesh=mesh)
    inputs, targets = draw_batch(work)
    batch = Batch(inputs, targets, None, np.asarray(False))
    hyper = Hyper(jnp.float32(work.learning_rate), jnp.float32(work.clip))
    laid_out = None
    if mesh is not None:
        state, batch = place_state(state, mesh), place(mesh, batch, BATCH)
        hyper = place(mesh, hyper, EVERYWHERE)
        laid_out = shardings(mesh, (STATE, EVERYWHERE))

    def several(state: Any, hyper: Any, batch: Any) -> Any:
        def body(state: Any, _: None) -> Any:
            return one_step(state, hyper, batch)

        state, metrics = jax.lax.scan(body, state, None, steps)
        return state, jax.tree.map(lambda a: a[0], metrics)

    def read(state: Any, metrics: Any) -> tuple[Any, Arrays]:
        return metrics.nats / metrics.tokens, export_model(config, state.params)

    return JaxProgram(
        one_step if steps == 1 else several, state, (hyper, batch), read, steps, mesh, laid_out
    )


def make_layer(work: Work, weights: Arrays) -> JaxProgram:
    """lm.recurrence.unroll and its own backward pass."""
    cell = CELLS[work.cell]
    plain = {name.removeprefix("rnn."): array for name, array in weights.items()}
    params = own(import_layer(work.cell, plain))
    state = cell.init_state(work.size.batch, work.size.hidden)
    x, d_h = draw_layer_batch(work)
    dtype = model_config(work).product_dtype

    def product(params: Any, x: Any, state: Any, d_h: Any) -> jax.Array:
        return jnp.sum(unroll(cell, params, state, x, dtype=dtype)[1] * d_h)

    def read(_: Any, value: Any) -> tuple[Any, Arrays]:
        loss, (d_params, d_x) = value
        layer = {f"rnn.{name}": a for name, a in export_layer(work.cell, d_params).items()}
        return loss, {**layer, "x": np.asarray(d_x)}

    gradient = jax.value_and_grad(product, argnums=(0, 1))
    return JaxProgram(
        lambda nothing, *inputs: (nothing, gradient(*inputs)), (), (params, x, state, d_h), read
    )
