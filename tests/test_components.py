"""The gradient taken apart, by time and by path, against untied copies and plain autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_names import EVERY_CELL, EVERY_RECURRENT_CELL
from test_cells import random_layer
from test_gradients import measure_layer_lags

from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.gradients.components import (
    Gram,
    lag_shares,
    measure_truncation,
    temporal_gram,
    total_log_norm,
)
from lm.gradients.flow import inject_at, pull_back_log
from lm.gradients.generic import (
    measure_step_lags,
    measure_step_lengths,
    measure_step_weights,
)
from lm.gradients.paths import measure_paths
from lm.recurrence import as_step, project, run_forward


def traced(cell, params, state, x, mask=None):
    z = project(x, params.w_x, params.b)
    return run_forward(cell, params.w_h, params.vectors, state, z, mask)[1]


@partial(jax.jit, static_argnums=0)
def found_gram(cell, params, state, x, d_h):
    """The Gram of dL/dW_h with what is read from it, L = h_T . d_h."""
    trace = traced(cell, params, state, x)
    flow = pull_back_log(cell, params, trace, inject_at(len(x), len(x) - 1, d_h))
    gram = temporal_gram(cell, trace, flow.delta)
    return gram, total_log_norm(gram), lag_shares(gram), measure_truncation(gram)


@partial(jax.jit, static_argnums=0)
def found_paths(cell, params, state, x, d_h, mask=None):
    """(Trace, Paths, Flow) of the same loss."""
    trace = traced(cell, params, state, x, mask)
    injected = inject_at(len(x), len(x) - 1, d_h)
    paths = measure_paths(cell, params, trace, injected)
    return trace, paths, pull_back_log(cell, params, trace, injected)


def untied_gradients(cell, params, state, x, d_h):
    """Gradient of each step's own copy of W_h, [T, H, K], summed over the batch."""

    def loss(copies):
        s = state
        for t in range(len(x)):
            s, h = as_step(cell)(params._replace(w_h=copies[t]), s, x[t])
        return jnp.vdot(h, d_h)

    copies = np.broadcast_to(params.w_h, (len(x), *params.w_h.shape))
    return np.asarray(jax.jit(jax.grad(loss))(copies))


@pytest.fixture
def layer(x64, name):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    d_h = np.random.default_rng(7).normal(size=state.h.shape)
    return cell, params, state, x, d_h


@pytest.mark.parametrize("name", EVERY_RECURRENT_CELL)
def test_gram_is_that_of_untied_copies(layer):
    cell, params, state, x, d_h = layer
    copies = untied_gradients(cell, params, state, x, d_h).reshape(len(x), -1)
    gram, total, shares, _ = jax.tree.map(np.asarray, found_gram(cell, params, state, x, d_h))
    norms = np.linalg.norm(copies, axis=1)
    np.testing.assert_allclose(np.exp(gram.log), norms, rtol=1e-12)
    inner = gram.cosine * np.exp(gram.log[:, None] + gram.log[None])
    np.testing.assert_allclose(inner, copies @ copies.T, rtol=1e-9, atol=1e-12 * norms.max() ** 2)
    whole = copies.sum(axis=0)
    np.testing.assert_allclose(np.exp(total), np.linalg.norm(whole), rtol=1e-12)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(shares, (copies @ whole / (whole @ whole))[::-1], atol=1e-12)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_truncated_gradient_is_the_sum_of_the_last_components(layer):
    """Against BPTT that really stops: the state k steps before the loss held constant."""
    cell, params, state, x, d_h = layer
    found = jax.tree.map(np.asarray, found_gram(cell, params, state, x, d_h)[3])

    def gradient(k):
        def loss(w_h):
            s, tied = state, params._replace(w_h=w_h)
            for t in range(len(x)):
                if t == len(x) - k:
                    s = jax.lax.stop_gradient(s)
                s, h = as_step(cell)(tied, s, x[t])
            return jnp.vdot(h, d_h)

        return np.asarray(jax.jit(jax.grad(loss))(params.w_h)).ravel()

    full = gradient(len(x))
    for k in (1, 2, 5, len(x)):
        short = gradient(k)
        norm = np.linalg.norm(short)
        assert found.cosine[k - 1] == pytest.approx(short @ full / norm / np.linalg.norm(full))
        assert np.exp(found.log_ratio[k - 1]) == pytest.approx(norm / np.linalg.norm(full))
    assert found.cosine[-1] == pytest.approx(1)


def test_components_far_below_the_range_of_float32():
    """Norms to 10^-300 in float32: the Gram keeps its logs, and shares still sum to 1."""
    cell = CELLS["rnn"]
    params = init_params(jax.random.key(0), cell, 8, 8, recurrent_gain=0.1)
    x = np.random.default_rng(1).normal(size=(300, 2, 8)).astype(np.float32)
    d_h = np.ones((2, 8), np.float32)
    found = found_gram(cell, params, cell.init_state(2, 8), x, d_h)
    gram, _, shares, _ = jax.tree.map(np.asarray, found)
    assert gram.log[0] == -np.inf  # h_0 = 0
    assert gram.log[1] / np.log(10) < -250
    assert np.all(np.isfinite(gram.log[1:]))
    np.testing.assert_allclose(np.diagonal(gram.cosine)[1:], 1, rtol=1e-5)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-6)


def test_shares_of_nothing_but_one_step():
    gram = Gram(jnp.asarray([-jnp.inf, 0.0]), jnp.asarray([[0.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(lag_shares(gram), [1, 0])
    assert total_log_norm(gram) == 0


@pytest.mark.parametrize("name", EVERY_CELL)
def test_generic_door_sees_what_the_engine_sees(layer):
    cell, params, state, x, d_h = layer
    step, output = as_step(cell), cell.state._fields.index("h")
    curves = jax.jit(measure_step_lags, static_argnums=(0, 5))(step, params, state, x, d_h, output)
    through = jax.jit(measure_step_lags, static_argnums=0)(step, params, state, x, d_h)
    ours = measure_layer_lags(cell, params, state, x, d_h)
    curves, through, ours = jax.tree.map(np.asarray, (curves, through, ours))
    np.testing.assert_allclose(curves.state, ours.state, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(curves.leaves[output], ours.h, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(through.state[1:], ours.state[1:], rtol=1e-9, atol=1e-10)
    assert np.all(through.state[0] == -np.inf)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_generic_weights_of_each_row(layer):
    cell, params, state, x, d_h = layer
    found = jax.jit(measure_step_weights, static_argnums=0)(as_step(cell), params, state, x, d_h)
    found, state, x = jax.tree.map(np.asarray, (found, state, x))
    for row in range(x.shape[1]):
        one = jax.tree.map(lambda leaf: leaf[row : row + 1], state)  # noqa: B023
        copies = untied_gradients(cell, params, one, x[:, row : row + 1], d_h[row : row + 1])
        copies = copies.reshape(len(x), -1)[::-1]
        whole = copies.sum(axis=0)
        norms = np.linalg.norm(copies, axis=1)
        np.testing.assert_allclose(np.exp(found.components.w_h[:, row]), norms, rtol=1e-9)
        np.testing.assert_allclose(
            found.shares.w_h[:, row], copies @ whole / (whole @ whole), atol=1e-10
        )
        np.testing.assert_allclose(np.exp(found.total.w_h[row]), np.linalg.norm(whole), rtol=1e-9)
    for leaf in jax.tree.leaves(found.shares):
        np.testing.assert_allclose(leaf.sum(axis=0), 1, rtol=1e-12)


def test_generic_lengths_are_gradients_of_prefixes(x64):
    cell = CELLS["lstm"]
    params, state, x = random_layer(cell)
    d_h = np.random.default_rng(7).normal(size=(2, *state.h.shape))
    measure = jax.jit(measure_step_lengths, static_argnums=(0, 5))
    found = jax.tree.map(np.asarray, measure(as_step(cell), params, state, x, d_h, (2, 6)))

    def loss(params, row, k, length):
        s = jax.tree.map(lambda leaf: leaf[row : row + 1], state)
        for t in range(length):
            s, h = as_step(cell)(params, s, x[t, row : row + 1])
        return jnp.vdot(h, d_h[k, row : row + 1])

    for k, length in enumerate((2, 6)):
        grads = jax.jit(jax.grad(loss), static_argnums=(1, 2, 3))(params, 1, k, length)
        for field in ("w_h", "w_x", "b"):
            expected = np.log(np.linalg.norm(getattr(grads, field)))
            np.testing.assert_allclose(getattr(found, field)[k, 1], expected, rtol=1e-9)


@pytest.mark.parametrize("name", EVERY_CELL)
@pytest.mark.parametrize("masked", [False, True])
def test_both_paths_sum_to_the_gradient(layer, masked):
    cell, params, state, x, d_h = layer
    mask = np.random.default_rng(5).random(x.shape[:2]) < 0.7 if masked else None
    _, paths, flow = found_paths(cell, params, state, x, d_h, mask)
    parts = [
        np.exp(np.asarray(part.log))[..., None] * np.concatenate(part.unit, axis=-1)
        for part in paths
    ]
    sizes = np.linalg.norm(parts[0] + parts[1], axis=-1)
    np.testing.assert_allclose(np.log(sizes), flow.log_norm_state, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["lstm"])
def test_the_carried_path_is_the_product_of_forget_gates(layer):
    cell, params, state, x, d_h = layer
    found = found_paths(cell, params, state, x, d_h)
    trace, paths, _ = jax.tree.map(np.asarray, found)
    expected = d_h * trace.tape.h[-1]  # enters c through the last h
    for lag in range(1, len(x)):
        expected = expected * trace.tape.c[len(x) - lag]
        t = len(x) - 1 - lag
        carried = np.exp(paths.carried.log[t])[:, None] * paths.carried.unit.c[t]
        np.testing.assert_allclose(carried, expected, rtol=1e-12)
    assert np.all(paths.carried.unit.h[:-1] == 0)


@pytest.mark.parametrize("name", ["rnn"])
def test_a_vanilla_rnn_carries_nothing_elementwise(layer):
    cell, params, state, x, d_h = layer
    _, paths, _ = found_paths(cell, params, state, x, d_h)
    assert np.all(paths.carried.log_norm[:-1] == -np.inf)


def test_both_kinds_of_cell_state_gradient(x64):
    """A probe added to c after h was taken from it sees the carry alone; one before, all."""
    cell = CELLS["lstm"]
    params, state, x = random_layer(cell)
    d_h = np.random.default_rng(7).normal(size=state.h.shape)
    curves = measure_layer_lags(cell, params, state, x, d_h)
    probes = np.zeros((len(x), *state.h.shape))

    def loss(before, after):
        s = state
        for t in range(len(x)):
            n = s.h.shape[-1]
            a = x[t] @ params.w_x + params.b[None] + s.h @ params.w_h
            i, f, o = (jax.nn.sigmoid(a[:, k * n : (k + 1) * n]) for k in range(3))
            c = f * s.c + i * jnp.tanh(a[:, 3 * n :]) + before[t]
            s = cell.state(c + after[t], o * jnp.tanh(c))
        return jnp.vdot(s.h, d_h)

    total, carry = jax.jit(jax.grad(loss, argnums=(0, 1)))(probes, probes)
    for got, gradient in ((curves.c_total, total), (curves.c, carry)):
        with np.errstate(divide="ignore"):
            expected = np.log(np.linalg.norm(gradient, axis=-1))[::-1]
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_neither_path_is_lost_beside_the_other():
    """600 steps, forget bias 0: the carried part ends hundreds of nats below, in float32 too."""
    cell = CELLS["lstm"]
    params = init_params(jax.random.key(0), cell, 8, 8, forget_bias=0.0)
    x = np.random.default_rng(1).normal(size=(600, 2, 8)).astype(np.float32)
    d_h = np.ones((2, 8), np.float32)

    @jax.jit
    def measure(params, x, d_h):
        state = cell.init_state(2, 8, x.dtype)
        trace = traced(cell, params, state, x)
        paths = measure_paths(cell, params, trace, inject_at(600, 599, d_h))
        return paths.carried.log_norm, paths.recurrent.log_norm

    short = measure(params, x, d_h)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x, d_h))
        long = measure(*double)
        np.testing.assert_allclose(short[0], long[0], atol=0.02)
        np.testing.assert_allclose(short[1][:-1], long[1][:-1], atol=0.02)
        assert np.min(long[1][0] - long[0][0]) > 100
