"""h_t = a_t h_{t-1} + b_t both ways, and the cells that are nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cells import B, D, H, T, random_layer
from test_recurrence import MASK, gradients

from lm import linear_recurrence
from lm.cells import CELLS
from lm.cells.cell import CellParams
from lm.checkpoint import Checkpoints
from lm.config import ModelConfig, OptimConfig
from lm.gradients.cell_measures import measure_cell
from lm.linear_recurrence import run_loop, run_rounds
from lm.recurrence import unroll, unroll_inputs
from lm.train import init_state

DIAGONAL = [name for name in CELLS if CELLS[name].diagonal is not None]
WAYS = (run_loop, run_rounds)


@pytest.mark.parametrize("time", [1, 7])
@pytest.mark.parametrize("way", WAYS)
def test_both_ways_and_their_gradients_equal_a_loop(way, time, x64):
    keys = jax.random.split(jax.random.key(time), 4)
    a = jax.random.uniform(keys[0], (time, 2, 3))
    b, weights = (jax.random.normal(k, (time, 2, 3)) for k in keys[1:3])
    h_0 = jax.random.normal(keys[3], (2, 3))
    h, pull_back = jax.vjp(jax.jit(way), a, b, h_0)
    wanted, s = [], np.asarray(h_0)
    for a_t, b_t in zip(np.asarray(a), np.asarray(b), strict=True):
        s = a_t * s + b_t
        wanted.append(s)
    np.testing.assert_allclose(h, np.stack(wanted), rtol=1e-12)
    # dL/dh_t = g_t + a_{t+1} dL/dh_{t+1}, from the end
    d_a, d_b, d_0 = pull_back(weights)
    d = np.zeros((2, 3))
    for t in reversed(range(time)):
        d = d + np.asarray(weights[t])
        np.testing.assert_allclose(d_b[t], d, rtol=1e-12)
        np.testing.assert_allclose(d_a[t], d * (wanted[t - 1] if t else h_0), rtol=1e-12)
        d = d * np.asarray(a[t])
    np.testing.assert_allclose(d_0, d, rtol=1e-12)


@pytest.mark.parametrize("name", DIAGONAL)
def test_cells_by_rounds_equal_cells_by_the_loop(name, monkeypatch, x64):
    """Values and gradients of parameters, carried state, inputs and probes, with padding."""
    cell = CELLS[name]
    arguments = (*random_layer(cell), jnp.asarray(MASK), cell.state(jnp.zeros((T, B, H))))

    def run():  # a function of its own each time, so that it is traced again
        return jax.jit(lambda *a: gradients(partial(unroll, cell), *a))(*arguments)

    by_loop = run()
    monkeypatch.setattr(linear_recurrence, "run_loop", run_rounds)
    by_rounds = run()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), by_rounds, by_loop
    )


def test_long_sequences_by_both_ways_agree_in_float32():
    keys = jax.random.split(jax.random.key(0), 3)
    a = jax.nn.sigmoid(jax.random.normal(keys[0], (3000, 1, 8)) + 6)  # time scales of 400 steps
    b = (1 - a) * jax.random.normal(keys[1], a.shape)
    h_0 = jax.random.normal(keys[2], (1, 8))
    loop, rounds = (jax.jit(way)(a, b, h_0) for way in WAYS)
    np.testing.assert_allclose(loop, rounds, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(loop))))


@pytest.mark.parametrize(("f", "i"), [(-200.0, -200.0), (-200.0, 3.0), (200.0, -200.0), (30, 30)])
def test_shares_of_gates_that_round_to_zero_or_one(f, i):
    """f' is a number, its derivative too, and f' + i' is 1."""
    cell = CELLS["minlstm"]
    z = jnp.concatenate([jnp.full((1, 2), v, jnp.float32) for v in (f, i, 0.5)], axis=1)
    expected = {(-200, -200): 0.5, (-200, 3): 0.0, (200, -200): 1.0, (30, 30): 0.5}[f, i]
    decay, added = cell.diagonal(z)
    np.testing.assert_allclose(decay, expected, atol=1e-7)
    np.testing.assert_allclose(added, (1 - expected) * 0.5, atol=1e-7)
    assert np.all(np.isfinite(jax.grad(lambda z: jnp.sum(cell.diagonal(z)[0]))(z)))


@pytest.mark.parametrize("least", [1e-4, 1e-6, 1e-12])
def test_the_smaller_share_is_no_difference_of_large_ones(least):
    """In float32 1 - (1 - 1e-12) is 0, and a lag curve through it would end."""
    log = np.float32(np.log(least))
    zero, one = jnp.zeros((1, 1), jnp.float32), jnp.ones((1, 1), jnp.float32)
    kept, _ = CELLS["mingru"].diagonal(jnp.concatenate([zero - log, one], axis=1))
    np.testing.assert_allclose(kept, 1 / (1 + 1 / least), rtol=1e-5)
    # i = least, f = 1/2
    _, added = CELLS["minlstm"].diagonal(jnp.concatenate([zero, zero + log, one], axis=1))
    i = 1 / (1 + 1 / least)
    np.testing.assert_allclose(added, i / (i + 0.5), rtol=1e-5)


def test_no_cell_without_a_product_takes_a_mask_for_it():
    cell = CELLS["mingru"]
    state, z = cell.init_state(2, 3), jnp.ones((4, 2, 6))
    params = CellParams(jnp.ones((3, 6)), jnp.ones((3, 0)), jnp.ones(6), ())
    with pytest.raises(ValueError, match="minGRU, which has no product"):
        unroll_inputs(cell, params, state, z, state_mask=jnp.ones((2, 3)))


@pytest.mark.parametrize("name", ["minlstm"])
def test_the_laboratory_sees_a_product_of_factors(name, x64):
    """ds_T/ds_t is diagonal, a product of the a's; nothing comes through recurrent weights."""
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    measures = ("lags", "paths", "truncation", "weights")
    found = measure_cell(cell, params, x=x, state=state, measures=measures)
    a, _ = cell.diagonal(x @ params.w_x + params.b[None, None])
    products = np.cumprod(np.asarray(a)[::-1], axis=0)  # lags 1 .. T
    np.testing.assert_allclose(
        np.exp(found.lags.state[1:]), np.linalg.norm(products, axis=-1)[:-1], rtol=1e-12
    )
    np.testing.assert_allclose(found.paths.carried, found.lags.state, rtol=1e-12, atol=1e-13)
    assert np.all(found.paths.recurrent == -np.inf)
    assert found.truncation is None
    assert np.all(found.weights.leaves.total.w_h == -np.inf)
    assert np.all(np.isfinite(found.weights.total))


def test_a_recurrent_product_is_refused():
    params, state, x = random_layer(CELLS["mingru"], dtype=jnp.float32)
    wide = params._replace(w_h=jnp.zeros((H, 2 * H)))
    with pytest.raises(ValueError, match=r"do not fit a minGRU; wanted \[D, 2 H\] and \[H, 0\]"):
        unroll(CELLS["mingru"], wide, state, x)
    assert params.w_x.shape == (D, 2 * H)


def test_a_checkpoint_holds_a_state_without_recurrent_weights(tmp_path):
    """Orbax saves no array without entries; what comes back is the state that went in."""
    config = ModelConfig(cell="mingru", hidden_size=3, embedding_size=2)
    state, other = (
        init_state(jax.random.key(seed), config, OptimConfig(momentum=0.9), 7, 2) for seed in (0, 1)
    )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        found = checkpoints.restore(other)
    assert found.params.layers[0].w_h.shape == (3, 0)
    for a, b in zip(
        jax.tree.leaves(found.replace(key=None)),
        jax.tree.leaves(state.replace(key=None)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
