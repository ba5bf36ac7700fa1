"""No loop of the engine copies a whole sequence at a step: read off what XLA has compiled.

Such a copy makes a step's time grow with T, a sequence's with its square, and no result shows it.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from cell_names import EVERY_RECURRENT_CELL
from compiled_loops import loop_lines
from quick_compiling import AS_USERS_HAVE_IT

from lm import model
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.config import ModelConfig
from lm.data.batches import Batch
from lm.recurrence import unroll
from lm.remat import chunk_steps, rematerialize
from lm.scans import field_over_z, scan_over
from lm.train import batch_nats

T, H = 37, 16


def copies(function, *arguments, steps=T, depth=1) -> list[str]:
    """Copies of arrays of so many steps inside loops."""
    compiled = jax.jit(function).lower(*arguments).compile(AS_USERS_HAVE_IT)
    lines = loop_lines(compiled.as_text(), depth)
    assert lines  # there is a loop
    return [line for line in lines if re.search(rf"= \w+\[(\d+,)?{steps},\S* copy\(", line)]


def layer(name, batch):
    cell = CELLS[name]
    params = jax.tree.map(jnp.ones_like, init_params(jax.random.key(0), cell, H, H))
    return cell, params, cell.init_state(batch, H), jnp.ones((T, batch, H))


def total(found):
    return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(found))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", EVERY_RECURRENT_CELL)
def test_there_and_back_no_sequence_is_copied_in_a_loop(name, batch):
    cell, params, state, x = layer(name, batch)

    def loss(params, state, x):
        return total(unroll(cell, params, state, x))

    assert not copies(jax.grad(loss, argnums=(0, 1, 2)), params, state, x)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_nor_with_masks_probes_and_gauges(name, batch):
    cell, params, state, x = layer(name, batch)
    probe = jax.tree.map(lambda a: jnp.zeros((T, *a.shape)), state)
    mask, dropped = jnp.ones((T, batch), bool), jnp.ones((batch, H))

    def loss(params, state, x, probe, gauge):
        return total(unroll(cell, params, state, x, mask, probe, gauge, dropped))

    gradient = jax.grad(loss, argnums=(0, 1, 2, 3, 4))
    assert not copies(gradient, params, state, x, probe, jnp.zeros(T))


def test_nor_with_seeds_side_by_side():
    cell, params, state, x = layer("lstm", 4)
    seeds = jax.tree.map(lambda a: jnp.stack([a] * 3), params)

    def loss(params):
        return total(unroll(cell, params, state, x))

    assert not copies(jax.vmap(jax.grad(loss)), seeds)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nor_in_a_model_of_two_layers(precision):
    """The first layer's z comes from a table of words, the second's from the first."""
    config = ModelConfig(layers=2, hidden_size=H, embedding_size=H, precision=precision)
    params, batch = model.init(jax.random.key(0), config, 11), 3
    carry, words = model.init_carry(config, batch), jnp.zeros((T, batch), jnp.int32)

    def loss(params):
        return total(model.apply(config, params, carry, words))

    assert not copies(jax.grad(loss), params)


def test_nor_where_activations_are_made_anew():
    """--remat: loops over the steps of a chunk inside one over the chunks."""
    config, batch, time = ModelConfig(hidden_size=H, embedding_size=H), 3, 2 * 13**2
    params = model.init(jax.random.key(0), config, 11)
    carry, words = model.init_carry(config, batch), jnp.zeros((time, batch), jnp.int32)
    rows = Batch(words, words, None, jnp.asarray(False))

    def loss(params):
        return rematerialize(batch_nats)(config, params, carry, rows)[0]

    steps = chunk_steps(time)
    assert steps not in (batch, H, 4 * H, 11)
    assert not copies(jax.grad(loss), params, steps=steps, depth=2)


def test_a_tape_over_z_saves_two_arrays_as_wide_as_the_gates(monkeypatch):
    """There and back: z, then the tape, then dL/dz, all in one place; in C as well, where it is."""
    batch, time = 32, 256
    lstm, params, state, _ = layer("lstm", batch)
    x = jnp.ones((time, batch, H))

    def held(cell):
        """In arrays of H numbers a token."""

        def loss(params, x):
            return jnp.vdot(unroll(cell, params, state, x)[1], x)

        compiled = (
            jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile(AS_USERS_HAVE_IT)
        )
        return compiled.memory_analysis().temp_size_in_bytes / (4 * time * batch * H)

    assert held(lstm) < 8.5  # z and what takes its place 4, the rest of the tape 2, h, dL/dx
    monkeypatch.setattr("lm.recurrence.find_loop", lambda *_: None)
    assert field_over_z(lstm, batch, None) == "gates"
    assert held(lstm) < held(dataclasses.replace(lstm, written_over_z=None)) - 7.5


def test_these_tests_see_a_copy():
    """A row that is used beside the new one, in no order that its data prescribe."""

    def step(carry, row, _):
        return carry + row, jnp.where(row > 0, 1.0, 0.0), row * 2

    def run(rows):
        return scan_over(step, jnp.zeros(rows.shape[1:]), rows, None)

    assert copies(run, jnp.ones((T, 2, H)))
