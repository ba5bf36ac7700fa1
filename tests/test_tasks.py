"""Synthetic tasks against their definitions and baselines; LSTM variants; chrono initialisation."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from lm import model
from lm.cells import CELLS
from lm.cells.cell import CellParams, chrono_bias_vector, gate_bias_vector
from lm.config import ModelConfig
from lm.recurrence import unroll
from lm.tasks import (
    LAG,
    TASKS,
    lag_bayes_nats,
    make_adding,
    make_copy,
    make_lag,
    make_latch,
    make_multiplication,
    make_temporal_order,
    make_temporal_order_8,
    sample_lag_process,
)


@cache
def sampler(task):
    return jax.jit(task.sample, static_argnums=1)


def draw(task, batch, seed=0):
    return jax.device_get(sampler(task)(jax.random.key(seed), batch))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_pure_and_shaped(name):
    task = TASKS[name](20)
    sample, again, other = draw(task, 7), draw(task, 7), draw(task, 7, seed=1)
    assert sample.inputs.shape == (task.length, 7, task.input_size)
    assert sample.targets.shape == sample.weights.shape == (task.length, 7)
    assert sample.inputs.dtype == sample.weights.dtype == np.float32
    np.testing.assert_array_equal(sample.inputs, again.inputs)
    assert (sample.inputs != other.inputs).any()
    assert set(np.unique(sample.weights)) <= {0.0, 1.0}
    if task.loss == "nats":
        assert np.issubdtype(sample.targets.dtype, np.integer)
        assert 0 <= sample.targets.min() <= sample.targets.max() < task.outputs
        if task.input_size > 1:
            np.testing.assert_array_equal(sample.inputs.sum(axis=-1), 1)


@pytest.mark.parametrize("name", TASKS)
def test_the_baseline_is_what_the_best_blind_answer_costs(name):
    task, draws = TASKS[name](20), 20_000
    sample = draw(task, draws)
    found = oracles.constant_loss(task.loss, sample.targets, sample.weights)
    # A mean square of 20,000 is right to 1 %; an entropy of k classes is k / 40,000 too small.
    assert found == pytest.approx(task.baseline, rel=0.03 if task.loss == "squared" else 1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_too_short_is_refused(name):
    with pytest.raises(ValueError, match="at least"):
        TASKS[name](0)


def test_adding_sums_the_two_marked_numbers():
    task = make_adding(21)
    sample = draw(task, 4000)
    numbers, marked = sample.inputs[..., 0], sample.inputs[..., 1]
    np.testing.assert_array_equal(marked[:10].sum(axis=0), 1)
    np.testing.assert_array_equal(marked[10:].sum(axis=0), 1)
    assert (marked.sum(axis=1) > 0).all(), "every step is marked at times"
    np.testing.assert_allclose(sample.targets[-1], (numbers * marked).sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(sample.weights[:-1], 0)
    np.testing.assert_array_equal(sample.weights[-1], 1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Answering the mean, 1, costs 2/12; four standard errors of 4000 draws are 0.01.
    assert task.baseline == 1 / 6
    assert np.mean((sample.targets[-1] - 1) ** 2) == pytest.approx(1 / 6, abs=0.01)


def test_multiplication_multiplies_the_two_marked_numbers():
    task = make_multiplication(21)
    sample = draw(task, 500)
    numbers, marked = sample.inputs[..., 0].T, sample.inputs[..., 1].T
    pairs = np.stack([row[mark == 1] for row, mark in zip(numbers, marked, strict=True)])
    np.testing.assert_allclose(sample.targets[-1], pairs[:, 0] * pairs[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(sample.inputs, draw(make_adding(21), 500).inputs)
    grid = (np.arange(1000) + 0.5) / 1000
    squares = (grid[:, None] * grid[None] - 0.25) ** 2  # E (x y - 1/4)^2, the midpoint rule
    assert task.baseline == pytest.approx(squares.mean(), rel=1e-5)


def test_latch_is_a_sign_and_noise():
    task = make_latch(50)
    sample = draw(task, 2000)
    x = sample.inputs[..., 0]
    np.testing.assert_array_equal(x[0], np.where(sample.targets[-1] == 1, 1.0, -1.0))
    assert np.bincount(sample.targets[-1]).min() > 900, "two classes, equally likely"
    assert stats.kstest(x[1:].reshape(-1) / np.sqrt(0.2), "norm").pvalue > 0.01
    assert abs(np.corrcoef(x[1:].sum(axis=0), x[0])[0, 1]) < 0.1, "the noise says nothing"
    np.testing.assert_array_equal(sample.weights.sum(axis=0), sample.weights[-1])


def test_copy_is_laid_out_as_in_the_paper():
    task = make_copy(20)
    sample = draw(task, 300)
    seen, target = sample.inputs.argmax(axis=-1), sample.targets
    assert task.length == 40
    assert set(np.unique(seen[:10])) == set(range(8))
    np.testing.assert_array_equal(seen[10:29], 8)  # T - 1 blanks
    np.testing.assert_array_equal(seen[29], 9)  # the delimiter
    np.testing.assert_array_equal(seen[30:], 8)
    np.testing.assert_array_equal(target[:30], 8)
    np.testing.assert_array_equal(target[30:], seen[:10])
    np.testing.assert_array_equal(sample.weights, 1)
    assert task.baseline == pytest.approx(0.5199, abs=5e-5)


def test_temporal_order_names_the_order():
    task = make_temporal_order(60)
    sample = draw(task, 3000)
    tokens = sample.inputs.argmax(axis=-1)
    here = tokens < 2
    np.testing.assert_array_equal(here.sum(axis=0), 2)
    places = np.stack([np.flatnonzero(column) for column in here.T])
    assert (places.min(axis=0), places.max(axis=0)) == (
        pytest.approx([6, 24]),
        pytest.approx([12, 30]),
    )
    first, second = (tokens[places[:, k], np.arange(3000)] for k in (0, 1))
    np.testing.assert_array_equal(sample.targets[-1], 2 * first + second)
    assert np.bincount(sample.targets[-1]).min() > 650, "four classes, equally likely"
    assert task.baseline == np.log(4)


def test_temporal_order_of_three():
    task = make_temporal_order_8(100)
    sample = draw(task, 4000)
    tokens = sample.inputs.argmax(axis=-1)
    places = np.stack([np.flatnonzero(column < 2) for column in tokens.T])  # [B, 3]
    assert places.min(axis=0).tolist() == [10, 30, 60]
    assert places.max(axis=0).tolist() == [20, 40, 70]
    bits = np.take_along_axis(tokens, places.T, axis=0)
    np.testing.assert_array_equal(sample.targets[-1], bits.T @ [4, 2, 1])
    assert np.bincount(sample.targets[-1]).min() > 420, "eight classes, equally likely"
    assert (np.bincount(tokens.reshape(-1))[2:] > 0.2 * tokens.size).all(), "four distractors"
    assert task.baseline == np.log(8)


def test_lag_process_looks_exactly_its_lag_back():
    sample = jax.jit(sample_lag_process, static_argnums=(1, 2))
    tokens = np.asarray(sample(jax.random.key(0), 203, 500))
    assert tokens.shape == (203, 500)
    for lag in range(1, 9):
        rise = (tokens[lag:] - tokens[:-lag]) % 4
        shares = np.bincount(rise.reshape(-1), minlength=4) / rise.size
        if lag == LAG:
            np.testing.assert_allclose(shares, [0.025, 0.925, 0.025, 0.025], atol=0.003)
        else:
            np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_bayes_loss_of_the_lag_process():
    assert lag_bayes_nats() == pytest.approx(0.349, abs=5e-4)
    p = np.asarray([0.925, 0.025, 0.025, 0.025])
    assert lag_bayes_nats() == pytest.approx(-np.sum(p * np.log(p)), rel=1e-12)
    sample = draw(make_lag(12), 3)
    np.testing.assert_array_equal(sample.weights[:, 0], [0] * 4 + [1] * 8)
    np.testing.assert_array_equal(sample.inputs[1:].argmax(axis=-1), sample.targets[:-1])


@partial(jax.jit, static_argnums=0)
def run_layer(name, params, x):
    cell = CELLS[name]
    return unroll(cell, params, cell.init_state(x.shape[1], params.w_h.shape[0], x.dtype), x)[1]


def random_layer(gates, hidden=4, inputs=3):
    rng = np.random.default_rng(0)
    shapes = [(inputs, gates * hidden), (hidden, gates * hidden), (gates * hidden,)]
    return CellParams(*(rng.normal(size=shape) for shape in shapes), ())


def columns(params, take):
    """Parameters whose gates are the given (column block, sign) of another cell's."""
    hidden = params.w_h.shape[0]

    def pick(array):
        blocks = [array[..., k * hidden : (k + 1) * hidden] * sign for k, sign in take]
        return np.concatenate(blocks, axis=-1)

    return params._replace(w_x=pick(params.w_x), w_h=pick(params.w_h), b=pick(params.b))


def test_variants_are_the_lstm_with_a_gate_held_open(x64):
    """i = 1 as b_i -> inf, f, o likewise; i = 1 - f with the weights of i those of -f."""
    x = np.random.default_rng(1).normal(size=(9, 2, 3))
    variants = {
        "nig": ([(0, 0), (0, 1), (1, 1), (2, 1)], 0),
        "nfg": ([(0, 1), (0, 0), (1, 1), (2, 1)], 1),
        "cifg": ([(0, -1), (0, 1), (1, 1), (2, 1)], None),
        "nog": ([(0, 1), (1, 1), (0, 0), (2, 1)], 2),
    }
    for name, (take, opened) in variants.items():
        params = random_layer(gates=3)
        full = columns(params, take)
        if opened is not None:
            full.b[4 * opened : 4 * opened + 4] = 100
        np.testing.assert_allclose(
            run_layer(name, params, x), run_layer("lstm", full, x), rtol=1e-12, err_msg=name
        )


def test_variants_with_nothing_added_are_the_lstm(x64):
    """Peepholes of 0; nothing of the gates fed back to them."""
    x = np.random.default_rng(1).normal(size=(9, 2, 3))
    lstm = random_layer(gates=4)
    added = {
        "peephole": lstm._replace(vectors=(np.zeros(4),) * 3),
        "fgr": lstm._replace(w_h=np.concatenate([lstm.w_h, np.zeros((4, 9 * 4))], axis=1)),
    }
    for name, params in added.items():
        np.testing.assert_allclose(
            run_layer(name, params, x), run_layer("lstm", lstm, x), rtol=1e-14, err_msg=name
        )


def test_chrono_spreads_time_scales_uniformly(x64):
    hidden, longest = 4000, 50
    b = chrono_bias_vector(jax.random.key(0), CELLS["lstm"], hidden, longest, jnp.float64)
    b_i, b_f, b_o, b_g = np.asarray(b).reshape(4, hidden)
    tau = 1 / (1 - 1 / (1 + np.exp(-b_f)))
    assert stats.kstest(tau, "uniform", args=(2, longest - 2)).pvalue > 0.01
    assert tau.min() > 2
    assert tau.max() < longest
    np.testing.assert_array_equal(b_i, -b_f)
    np.testing.assert_array_equal(b_o, 0)
    np.testing.assert_array_equal(b_g, 0)


def test_chrono_takes_the_place_of_the_forget_bias():
    def bias(name, chrono, forget_bias=7.0):
        key = jax.random.key(0)
        return np.asarray(gate_bias_vector(key, CELLS[name], 5, forget_bias, chrono, jnp.float32))

    np.testing.assert_array_equal(bias("lstm", 0)[5:10], 7)
    assert len(np.unique(bias("lstm", 30)[5:10])) == 5
    assert bias("lstm", 30).max() < np.log(29)
    for name in ("nig", "cifg"):  # no input gate of its own
        assert (bias(name, 30)[:5] > 0).all()
        np.testing.assert_array_equal(bias(name, 30)[5:], 0)
    for name in ("rnn", "gru", "nfg"):
        np.testing.assert_array_equal(bias(name, 30), 0)
    with pytest.raises(ValueError, match="chrono is 1"):
        bias("lstm", 1)


@pytest.mark.parametrize("init", ["scaled", "uniform"])
def test_chrono_is_an_option_of_the_model(init):
    config = ModelConfig(hidden_size=6, embedding_size=4, layers=2, chrono=40, init=init)
    params = jax.jit(lambda key: model.init(key, config, 11))(jax.random.key(0))
    noise = config.init_range if init == "uniform" else 0.0
    first, second = (np.asarray(layer.b).reshape(4, 6) for layer in params.layers)
    assert first[1].max() > 1.5, "log of up to 39 steps"
    np.testing.assert_allclose(first[0], -first[1], atol=2 * noise)
    np.testing.assert_allclose(first[2:], 0, atol=noise)
    assert (first[1] != second[1]).all(), "a draw for each layer"
    with pytest.raises(ValueError, match="chrono is 1"):
        ModelConfig(chrono=1)


@pytest.mark.parametrize("name", TASKS)
def test_samples_do_not_depend_on_the_precision_in_use(name):
    task, key = TASKS[name](40), jax.random.key(3)
    sample = jax.jit(task.sample, static_argnums=1)
    plain = sample(key, 4)
    with jax.enable_x64(True):
        other = sample(key, 4)
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    assert jax.tree.map(lambda a: a.dtype, plain) == jax.tree.map(lambda a: a.dtype, other)
