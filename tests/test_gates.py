"""Gates, sensitivity and context use against exact laws and slow loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_names import EACH_CELL
from test_cells import random_layer
from test_gradients import LINEAR, linear_curve

from lm import model
from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params
from lm.cells.rnn import RNNState
from lm.config import ModelConfig
from lm.gradients import context, gates, sensitivity
from lm.gradients.context import CHANGES
from lm.gradients.gates import (
    carousel_log_norms,
    gate_saturation,
    histogram_shares,
    time_scale,
)
from lm.gradients.sensitivity import pascanu_omega
from lm.recurrence import as_step

gate_activations = jax.jit(gates.gate_activations, static_argnums=0)
state_sensitivity = jax.jit(sensitivity.state_sensitivity, static_argnums=0)
measure_context = jax.jit(context.measure_context, static_argnums=(0, 5))
measure_replaced_token = jax.jit(context.measure_replaced_token, static_argnums=0)


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0, 3.0, 100.0])
def test_carousel_of_forced_gates(bias, x64):
    """W = U = 0: the product of forget gates is sigmoid(b)^lag, over 1,000 lags."""
    cell = CELLS["lstm"]
    params = jax.tree.map(
        jnp.zeros_like, init_params(jax.random.key(0), cell, 3, 4, dtype=jnp.float64)
    )
    params = params._replace(b=params.b.at[4:8].set(bias))
    _, gates = gate_activations(
        cell, params, cell.init_state(2, 4, jnp.float64), jnp.ones((1000, 2, 3))
    )
    logs = carousel_log_norms(gates["f"])
    expected = np.arange(1001) * -np.log1p(np.exp(-bias))
    np.testing.assert_allclose(logs[:, 1, 2], expected, rtol=1e-12, atol=1e-14)


def test_time_scale_and_its_histogram():
    f = jax.nn.sigmoid(jnp.asarray([[[0.0, jnp.log(9.0), jnp.log(99.0)]]]))
    tau = time_scale(f)
    np.testing.assert_allclose(tau[0, 0], [2, 10, 100], rtol=1e-5)
    shares = histogram_shares(tau, jnp.asarray([1.0, 3.0, 30.0, 90.0]))
    np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    assert time_scale(jnp.ones(1))[0] == jnp.inf


@pytest.mark.parametrize(("bias", "low", "high"), [(-50.0, 1, 0), (50.0, 0, 1), (0.0, 0, 0)])
def test_saturation_in_the_limits(bias, low, high):
    cell = CELLS["lstm"]
    params = init_params(jax.random.key(0), cell, 3, 4)
    params = jax.tree.map(jnp.zeros_like, params)._replace(b=jnp.full(16, bias))
    _, gates = gate_activations(cell, params, cell.init_state(2, 4), jnp.ones((9, 2, 3)))
    for name in ("i", "f", "o"):
        found = gate_saturation(gates[name])
        np.testing.assert_array_equal(found.low, low)
        np.testing.assert_array_equal(found.high, high)
        assert np.all(found.low + found.high <= 1)


@pytest.mark.parametrize("name", EACH_CELL)
def test_activations_are_those_of_the_step(name, x64):
    """The states are the plain step's, and the gates are those that made them."""
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    found = gate_activations(cell, params, state, x)
    (states, gates), s, x = jax.tree.map(np.asarray, (found, state, x))
    step = jax.jit(as_step(cell))
    for t in range(len(x)):
        c_prev, h_prev = getattr(s, "c", None), s.h
        s = jax.tree.map(np.asarray, step(params, s, x[t])[0])
        np.testing.assert_allclose(states.h[t], s.h, rtol=1e-12)
        if name == "lstm":
            c = gates["f"][t] * c_prev + gates["i"][t] * gates["g"][t]
            np.testing.assert_allclose(c, s.c, rtol=1e-12)
        if name == "minlstm":
            h = gates["f"][t] * h_prev + gates["i"][t] * gates["n"][t]
            np.testing.assert_allclose(h, s.h, rtol=1e-12)
    assert set(gates) == (set() if cell.gates == ("h",) else set(cell.gates))


def test_sensitivity_of_a_scalar_recurrence(x64):
    """Unit impulse: dh_t/dlambda = t lambda^(t-1); its squares sum to (1 + l^2) / (1 - l^2)^3.

    That sum is the stationary E (dh/dlambda)^2 for white inputs of variance 1.
    """
    x, step = np.eye(6000, 1)[..., None], as_step(LINEAR)
    for value in (0.3, 0.9, 0.99):
        params = CellParams(np.ones((1, 1)), np.full((1, 1), value), np.zeros(1), ())
        direction = jax.tree.map(np.zeros_like, params)._replace(w_h=np.ones((1, 1)))
        log = np.asarray(state_sensitivity(step, params, RNNState(np.zeros((1, 1))), x, direction))
        expected = (1 + value**2) / (1 - value**2) ** 3
        assert float(np.exp(2 * log).sum()) == pytest.approx(expected, rel=1e-11)
        assert log[0, 0] == -jnp.inf  # h_0 = 0: the first step does not depend on lambda


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_sensitivity_equals_forward_autodiff(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    log = state_sensitivity(as_step(cell), params, state, x, direction)

    def run(params):
        s, found = state, []
        for t in range(len(x)):
            s, _ = as_step(cell)(params, s, x[t])
            found.append(jnp.concatenate(jax.tree.leaves(s), axis=1))
        return jnp.stack(found)

    _, tangent = jax.jit(partial(jax.jvp, run))((params,), (direction,))
    np.testing.assert_allclose(np.exp(log), np.linalg.norm(tangent, axis=-1), rtol=1e-10)


def test_omega_of_rotations(x64):
    """0 for an orthogonal linear RNN at every lag; (rho - 1)^2 for rho times one."""
    log, _ = linear_curve(1.0, 300, jnp.float64)
    np.testing.assert_allclose(pascanu_omega(jnp.asarray(log)), 0, atol=1e-24)
    log, _ = linear_curve(0.5, 300, jnp.float64)
    np.testing.assert_allclose(pascanu_omega(jnp.asarray(log)), 0.25, rtol=1e-12)


@pytest.fixture(scope="module")
def language_model():
    config = ModelConfig(cell="lstm", hidden_size=8, embedding_size=8)
    params = model.init(jax.random.key(0), config, 11)
    rng = np.random.default_rng(1)
    tokens, targets = (rng.integers(0, 11, shape).astype(np.int32) for shape in ((12, 5), 5))
    return config, params, tokens, targets


@partial(jax.jit, static_argnums=0)
def plain_nats(config, params, tokens, targets):
    carry = model.init_carry(config, tokens.shape[1])
    _, h = model.apply(config, params, carry, tokens)
    scores = model.logits(params, h[-1])
    return jax.nn.logsumexp(scores, axis=1) - scores[jnp.arange(len(targets)), targets]


def test_cut_context_is_a_shorter_text(language_model):
    config, params, tokens, targets = language_model
    kept = np.asarray([1, 4, 12])
    found = measure_context(
        config, params, tokens, targets, kept, CHANGES["cut"], jax.random.key(0)
    )
    for row, count in zip(found, kept, strict=True):
        np.testing.assert_allclose(
            row, plain_nats(config, params, tokens[12 - int(count) :], targets), rtol=1e-5
        )


@pytest.mark.parametrize("name", CHANGES)
def test_whole_context_is_the_loss_as_it_is(name, language_model):
    config, params, tokens, targets = language_model
    found = measure_context(
        config, params, tokens, targets, np.asarray([12]), CHANGES[name], jax.random.key(0)
    )
    np.testing.assert_allclose(found[0], plain_nats(config, params, tokens, targets), rtol=1e-5)


def test_changes_leave_what_is_near(language_model):
    _, _, tokens, _ = language_model
    far = np.arange(12) < 7
    found = {
        name: jax.tree.map(np.asarray, jax.jit(change)(jax.random.key(4), tokens, far))
        for name, change in CHANGES.items()
    }
    for name, (changed, mask) in found.items():
        np.testing.assert_array_equal(changed[7:], tokens[7:])
        assert mask.shape == tokens.shape
        assert np.all(mask[7:])
        assert not np.array_equal(np.where(mask, changed, -1), tokens), name
    shuffled, _ = found["shuffle"]
    np.testing.assert_array_equal(np.sort(shuffled[:7], axis=0), np.sort(tokens[:7], axis=0))
    replaced, _ = found["replace"]
    columns = {tuple(column) for column in tokens[:7].T}
    assert all(tuple(column) in columns for column in replaced[:7].T)
    _, dropped = found["drop"]
    assert 0 < int(dropped[:7].sum()) < 35
    with pytest.raises(ValueError, match="wanted 2 or more"):
        CHANGES["replace"](jax.random.key(4), tokens[:, :1], far)


def test_a_replaced_token_costs_what_the_loss_says(language_model):
    config, params, tokens, targets = language_model
    key = jax.random.key(3)
    found = measure_replaced_token(config, params, tokens, targets, key)
    assert found.shape == tokens.shape
    other = (tokens + np.asarray(jax.random.randint(key, tokens.shape, 1, 11))) % 11
    assert not np.any(other == tokens)
    lag = 3
    changed = np.array(tokens)
    changed[11 - (lag - 1)] = other[11 - (lag - 1)]
    expected = plain_nats(config, params, changed, targets) - plain_nats(
        config, params, tokens, targets
    )
    np.testing.assert_allclose(found[lag - 1], expected, rtol=1e-4, atol=1e-6)
