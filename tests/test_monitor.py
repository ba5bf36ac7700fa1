"""Optimizers, plateaus, averaging, early stopping: against rules written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ModelConfig, OptimConfig
from lm.data.batches import StreamBatches
from lm.monitor import averaged, init_average, init_monitor, observe, take_in
from lm.optim import Hyper, fitting_rate, make_optimizer, make_schedule
from lm.train import init_state, make_block

V = 13
SMALL = ModelConfig(hidden_size=8, embedding_size=8)
TOKENS = np.random.default_rng(0).integers(1, V, 2003).astype(np.int32)


def rule_by_hand(config, gradients, start, rate):
    """Float64 loops: PyTorch's order (clip, decay, rule), Kingma & Ba's and Hinton's updates."""
    p, m, v, trace = start.copy(), 0.0, 0.0, 0.0
    for step, g in enumerate(gradients, 1):
        g = g * min(1, config.clip / np.sqrt((g**2).sum())) + config.weight_decay * p
        if config.optimizer == "sgd":
            trace = config.momentum * trace + g
            p = p - rate * trace
        elif config.optimizer == "adam":
            m = config.beta1 * m + (1 - config.beta1) * g
            v = config.beta2 * v + (1 - config.beta2) * g**2
            corrected = np.sqrt(v / (1 - config.beta2**step)) + 1e-8
            p = p - rate * m / (1 - config.beta1**step) / corrected
        else:
            v = config.beta2 * v + (1 - config.beta2) * g**2
            p = p - rate * g / np.sqrt(v + 1e-8)
    return p


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"optimizer": "adam"},
        {"optimizer": "adam", "beta1": 0.0, "weight_decay": 0.1},  # Melis et al. 2017
        {"optimizer": "rmsprop", "beta2": 0.95},
    ],
)
def test_optimizers_by_hand(options):
    config = OptimConfig(clip=2.0, **options)
    rng = np.random.default_rng(0)
    gradients, start = rng.normal(size=(5, 6)), rng.normal(size=6)
    optimizer = make_optimizer(config, Hyper(0.3, 2.0), lambda count: 1.0)
    params = jnp.asarray(start, jnp.float32)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax's adam mixes its counter with floats
        for g in gradients:
            updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
            params = params + updates
    np.testing.assert_allclose(
        params, rule_by_hand(config, gradients, start, 0.3), rtol=2e-5, atol=1e-5
    )


def test_learning_rates_where_none_is_given():
    assert fitting_rate(OptimConfig(), 20.0) == 20
    assert fitting_rate(OptimConfig(optimizer="adam"), 20.0) == 0.002
    assert fitting_rate(OptimConfig(optimizer="adam", learning_rate=0.5), 20.0) == 0.5
    with pytest.raises(ValueError, match=r"momentum is 0\.9 with optimizer=adam"):
        OptimConfig(optimizer="adam", momentum=0.9)


LOSSES = [5.0, 4.0, 4.5, 4.2, 4.1, 3.9, 4.0, 4.4, 3.95, 3.91, 3.89, 3.89, 4.3]


def watch(config, losses):
    monitor, average = init_monitor(config), init_average(config, jnp.zeros(1))
    rows = []
    for loss in losses:
        monitor, average = observe(config, monitor, average, loss)
        on = average is not None and bool(average.on)
        rows.append((float(monitor.rate), bool(monitor.stalled), on))
    return rows


def test_plateau_decays_where_pytorchs_example_does():
    rates = [row[0] for row in watch(OptimConfig(schedule="plateau", decay=0.25), LOSSES)]
    rate, best, wanted = 1.0, None, []
    for loss in LOSSES:  # as in word_language_model/main.py
        if not best or loss < best:
            best = loss
        else:
            rate /= 4.0
        wanted.append(rate)
    np.testing.assert_allclose(rates, wanted)
    assert {row[0] for row in watch(OptimConfig(), LOSSES)} == {1.0}


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_averaging_begins_where_awd_lstms_does(n):
    rows = watch(OptimConfig(averaging="triggered", patience=n), LOSSES)
    seen, on, wanted = [], False, []
    for loss in LOSSES:  # as in awd-lstm-lm/main.py
        on = on or (len(seen) > n and loss > min(seen[:-n]))
        seen.append(loss)
        wanted.append(on)
    assert [row[2] for row in rows] == [row[1] for row in rows] == wanted
    assert any(wanted)
    assert not all(wanted)


def test_the_average_is_the_mean_of_the_iterates_since_it_began():
    config = OptimConfig(averaging="triggered", patience=1)
    walk = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    monitor, average = init_monitor(config), init_average(config, jnp.zeros(4))
    for step, params in enumerate(jnp.asarray(walk)):
        average = take_in(average, params)
        if step < 4:
            np.testing.assert_array_equal(averaged(average, params), params)
        if step in (1, 2, 3):  # the third is worse than the first: on from here
            monitor, average = observe(config, monitor, average, [1.0, 3.0, 2.0][step - 1])
    np.testing.assert_allclose(averaged(average, params), walk[4:].mean(axis=0), rtol=1e-5)
    assert int(average.steps) == 5
    always = init_average(OptimConfig(averaging="always"), jnp.zeros(4))
    for params in jnp.asarray(walk):
        always = take_in(always, params)
    np.testing.assert_allclose(averaged(always, params), walk.mean(axis=0), rtol=1e-5)
    assert init_average(OptimConfig(), jnp.zeros(4)) is None


def test_training_keeps_the_mean_of_its_parameters():
    optim = OptimConfig(averaging="always")
    batches = StreamBatches(TOKENS, 4, 10)
    block = make_block(SMALL, optim, make_schedule(optim, 10, 10))
    state = init_state(jax.random.key(0), SMALL, optim, V, 4)
    seen = []
    for step in range(4):
        state, _, _ = block(state, Hyper(5.0, 0.25), batches.block(step, 1))
        seen.append(np.asarray(state.params.softmax_b))
    np.testing.assert_allclose(state.evaluated_params.softmax_b, np.mean(seen, axis=0), rtol=1e-5)
    assert not np.allclose(state.evaluated_params.softmax_b, state.params.softmax_b)


def test_the_plateaus_rate_reaches_the_step():
    optim = OptimConfig(schedule="plateau", clip=float("inf"))
    block = make_block(SMALL, optim, make_schedule(optim, 10, 10))
    moved = []
    for rate in (1.0, 0.25):
        state = init_state(jax.random.key(0), SMALL, optim, V, 4)
        before = np.asarray(state.params.softmax_b)
        state = state.replace(monitor=state.monitor.replace(rate=jnp.float32(rate)))
        batch = StreamBatches(TOKENS, 4, 10).block(0, 1)
        state, _, _ = block(state, Hyper(1.0, float("inf")), batch)
        moved.append(np.asarray(state.params.softmax_b) - before)
    np.testing.assert_allclose(moved[1], moved[0] / 4, rtol=1e-5)
