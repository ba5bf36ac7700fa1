"""Dropout of every kind: what is masked, how much, and that evaluation knows nothing of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_names import EVERY_RECURRENT_CELL

from lm import model
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.cells.feedback import recurrent_product
from lm.config import DataConfig, ModelConfig, OptimConfig, RegularizeConfig
from lm.data.batches import StreamBatches, make_batches
from lm.evaluate import evaluate_stream
from lm.optim import Hyper, make_schedule
from lm.products import add_bias
from lm.recurrence import as_step, unroll
from lm.regularize import (
    Masks,
    activation_penalty,
    draw_mask,
    draw_masks,
    slowness_penalty,
)
from lm.train import batch_nats, init_state, make_block

V, T, B = 50, 7, 4
NETWORK = ModelConfig(layers=3, hidden_size=24, last_hidden_size=16, embedding_size=16, tied=True)
ALL = RegularizeConfig(
    dropout_words=0.2,
    dropout_input=0.3,
    dropout_hidden=0.4,
    dropout_output=0.5,
    dropout_state=0.6,
    weight_drop=0.7,
)
TOKENS = np.random.default_rng(0).integers(1, V, 2000).astype(np.int32)
PARAMS = model.init(jax.random.key(0), NETWORK, V)


@partial(jax.jit, static_argnums=(0, 1))
def masks_of(config, key=0):
    return draw_masks(jax.random.key(key), config, NETWORK, V, T, B)


compiled_nats = jax.jit(partial(batch_nats, NETWORK), static_argnames="regularize")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_keeps_the_mean(rate):
    """Entries are 0 at the rate, else 1 / (1 - rate): within 4 standard errors of 400,000 draws."""
    mask = np.asarray(draw_mask(jax.random.key(1), rate, (400, 1000)))
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs((mask == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / mask.size)
    rows = (mask == 0).mean(axis=1)  # and entries are independent: rows vary as a binomial does
    assert 0.8 < rows.var() / (rate * (1 - rate) / 1000) < 1.2


def test_shapes_and_rates_of_every_mask():
    masks = masks_of(ALL)
    gates = len(CELLS["lstm"].gates)
    assert masks.words.shape == (V,)
    assert masks.input.shape == (1, B, 16)
    assert [m.shape for m in masks.hidden] == [(1, B, 24), (1, B, 24)]
    assert masks.output.shape == (1, B, 16)
    assert [m.shape for m in masks.state] == [(B, 24), (B, 24), (B, 16)]
    assert [m.shape for m in masks.weights] == [(h, gates * h) for h in (24, 24, 16)]
    kept = [1 / (1 - rate) for rate in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
    for field, value in zip(masks, kept, strict=True):
        for leaf in jax.tree.leaves(field):
            assert set(np.round(np.unique(leaf), 5)) == {0, round(np.float32(value), 5)}
    fresh = masks_of(RegularizeConfig(dropout_input=0.5, dropout_masks="independent"))
    assert fresh.input.shape == (T, B, 16)
    assert len(np.unique(np.asarray(fresh.input).reshape(T, -1), axis=0)) == T
    assert masks_of(RegularizeConfig()) == Masks()


def test_masks_of_layers_kinds_and_steps_differ():
    first, other = masks_of(ALL), masks_of(ALL, key=1)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
        assert not np.array_equal(a, b)
    assert not np.array_equal(first.hidden[0], first.hidden[1])
    assert not np.array_equal(first.state[0], first.state[1])
    same = draw_masks(
        jax.random.key(0), RegularizeConfig(dropout_input=0.5, dropout_output=0.5), NETWORK, V, T, B
    )
    assert not np.array_equal(same.input, same.output)


def oracle_apply(params, masks, tokens):
    """Layer by layer and step by step with explicit masks: the equations of the papers."""
    cell = CELLS["lstm"]
    step = jax.jit(as_step(cell))
    h = np.array(params.embedding)[tokens]
    h = h * np.array(masks.words)[tokens][..., None] * np.array(masks.input)
    masks = jax.tree.map(np.asarray, masks)
    for index, layer in enumerate(params.layers):
        dropped = layer._replace(w_h=layer.w_h * masks.weights[index])
        state = cell.init_state(B, layer.w_h.shape[0])
        outputs = []
        for x_t in h:
            seen = state._replace(h=state.h * masks.state[index])
            state, h_t = step(dropped, seen, x_t)
            outputs.append(np.asarray(h_t))
        h = np.stack(outputs)
        if index < len(params.layers) - 1:
            h = h * np.array(masks.hidden[index])
    return h


@pytest.mark.parametrize("kind", ["variational", "independent"])
def test_masks_act_where_the_equations_say(kind):
    masks = masks_of(
        RegularizeConfig(
            **dict.fromkeys(("dropout_words", "dropout_input", "dropout_hidden"), 0.4),
            dropout_state=0.4,
            weight_drop=0.4,
            dropout_masks=kind,
        )
    )
    tokens = TOKENS[: T * B].reshape(T, B)
    carry = model.init_carry(NETWORK, B)
    _, h = jax.jit(partial(model.apply, NETWORK))(PARAMS, carry, tokens, masks=masks)
    np.testing.assert_allclose(h, oracle_apply(PARAMS, masks, tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY_RECURRENT_CELL)
def test_gradient_with_dropped_states_equals_autodiff(name, x64):
    """The engine's backward scan against autodiff of the plain loop, padding included."""
    cell, hidden = CELLS[name], 6
    rng = np.random.default_rng(3)
    params = init_params(jax.random.key(3), cell, 5, hidden, dtype=jnp.float64)
    x, weight = rng.normal(size=(T, B, 5)), rng.normal(size=(T, B, hidden))
    kept = draw_mask(jax.random.key(4), 0.4, (B, hidden), jnp.float64)
    mask = rng.random((T, B)) < 0.8

    def ours(p, x):
        state = cell.init_state(B, hidden, jnp.float64)
        return jnp.sum(unroll(cell, p, state, x, mask, state_mask=kept)[1] * weight)

    def plain(p, x):
        def step(state, at_t):
            x_t, mask_t, weight_t = at_t
            # What a gate sees of h_{t-1} beside the product is not dropped (the GRU's blend).
            u_t = recurrent_product(cell, state._replace(h=state.h * kept), p.w_h)
            new = cell.gate(p.vectors, state, add_bias(x_t @ p.w_x, p.b), u_t)
            state = jax.tree.map(partial(jnp.where, mask_t), new, state)
            return state, jnp.sum(jnp.where(mask_t, state.h, 0) * weight_t)

        state = cell.init_state(B, hidden, jnp.float64)
        return jnp.sum(jax.lax.scan(step, state, (x, mask[..., None], weight))[1])

    (loss, found), (plain_loss, wanted) = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(params, x) for f in (ours, plain)
    )
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_penalties_by_hand():
    h = jnp.arange(24.0).reshape(3, 2, 4)
    np.testing.assert_allclose(activation_penalty(h, None), np.mean(np.arange(24.0) ** 2))
    np.testing.assert_allclose(slowness_penalty(h, None), 64.0)
    mask = jnp.asarray([[True, True], [True, False], [False, False]])
    kept = np.asarray(h)[[0, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(activation_penalty(h, mask), np.mean(kept**2))
    np.testing.assert_allclose(
        slowness_penalty(h + h**2, mask), np.mean((8 + 64 + 16 * np.arange(4.0)) ** 2)
    )
    assert slowness_penalty(h[:1], None) == 0


def test_penalties_are_added_to_the_loss_but_not_to_the_nats():
    batch = StreamBatches(TOKENS, B, T).at(3)
    carry = model.init_carry(NETWORK, B)
    plain, (_, nats, _) = compiled_nats(PARAMS, carry, batch)
    _, h = jax.jit(partial(model.apply, NETWORK))(PARAMS, carry, batch.inputs)
    h = np.asarray(h)
    penal = RegularizeConfig(activation_penalty=2.0, slowness_penalty=3.0)
    mask = Masks(output=np.full((1, B, 16), 2.0, np.float32))
    dropped, (_, nats_dropped, _) = compiled_nats(PARAMS, carry, batch, None, mask)
    loss, (_, nats_penal, _) = compiled_nats(PARAMS, carry, batch, None, mask, penal)
    wanted = dropped + 2 * np.mean((2 * h) ** 2) + 3 * np.mean(np.diff(h, axis=0) ** 2)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert nats_penal == nats_dropped
    assert nats != nats_dropped
    assert plain != dropped


@pytest.fixture(scope="module")
def trained():
    """A few steps with everything on, and the same with everything off."""
    states = []
    for regularize in (ALL, RegularizeConfig()):
        optim = OptimConfig(learning_rate=1.0)
        batches = StreamBatches(TOKENS, B, T)
        block = make_block(NETWORK, optim, make_schedule(optim, 100, 8), regularize=regularize)
        state = init_state(jax.random.key(0), NETWORK, optim, V, B)
        runs = []
        for _ in range(2):
            copy = jax.tree.map(jnp.copy, state)
            copy, metrics, _ = block(copy, Hyper(1.0, 0.25), batches.block(0, 8))
            runs.append((copy, metrics))
        states.append(runs)
    return states


def test_dropout_changes_training_and_not_evaluation(trained):
    dropped, plain = trained[0][0], trained[1][0]
    assert not np.allclose(dropped[1].nats, plain[1].nats, rtol=1e-3)
    params = dropped[0].params
    first = evaluate_stream(NETWORK, params, TOKENS[:300])
    assert first.nats == evaluate_stream(NETWORK, params, TOKENS[:300]).nats
    # The nats of evaluation are those of the bare equations.
    batch = StreamBatches(TOKENS[:300], 1, 300).at(0)
    nats = compiled_nats(params, model.init_carry(NETWORK, 1), batch)[1][1]
    np.testing.assert_allclose(first.nats, nats, rtol=1e-5)


def test_masks_are_a_function_of_key_and_step(trained):
    """The same run twice is the same; the same batch twice, unlearnt from, is masked anew."""
    once, again = trained[0]
    for a, b in zip(jax.tree.leaves(once[0].params), jax.tree.leaves(again[0].params), strict=True):
        np.testing.assert_array_equal(a, b)
    optim = OptimConfig()
    batch = StreamBatches(TOKENS, B, T).block(0, 1)  # the first: from the zero state
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), batch)
    block = make_block(NETWORK, optim, make_schedule(optim, 100, 8), regularize=ALL)
    _, metrics, _ = block(init_state(jax.random.key(0), NETWORK, optim, V, B), Hyper(0, 1), twice)
    assert metrics.nats[0] != metrics.nats[1]


@pytest.mark.parametrize(("total", "length"), [(2000, 20), (40_000, 70), (300, 5)])
def test_random_lengths_read_every_token_once_in_order(total, length):
    tokens = np.random.default_rng(1).integers(2, 1000, total).astype(np.int32)
    batches = make_batches(tokens, DataConfig(batch_size=4, length=length, random_length=True), 7)
    rows, step = [[] for _ in range(4)], 0
    while True:
        batch = batches.at(step)
        if step and batch.reset:
            break
        assert batch.inputs.shape == batch.targets.shape == (length + 15, 4)
        width = int(batch.mask[:, 0].sum())
        assert batch.mask[:width].all()
        assert not batch.mask[width:].any()
        assert batch.rate == np.float32(width / length)
        for row in range(4):
            rows[row].extend(batch.targets[:width, row])
        step += 1
    used = total // 4 * 4
    np.testing.assert_array_equal(np.asarray(rows).reshape(-1), tokens[:used])
    stacked = batches.block(3, 4)
    np.testing.assert_array_equal(stacked.targets[2], batches.at(5).targets)
    np.testing.assert_array_equal(stacked.rate[2], batches.at(5).rate)


def test_random_lengths_have_the_published_distribution():
    tokens = np.ones(3_000_000, np.int32)
    batches = make_batches(tokens, DataConfig(batch_size=4, length=70, random_length=True))
    lengths = np.asarray([batches.at(k).mask[:, 0].sum() for k in range(4000)])
    short = lengths < 52
    assert abs(short.mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
    assert abs(lengths[~short].mean() - 69.5) < 0.4  # int() cuts half a token off
    assert abs(lengths[~short].std() - 5) < 0.4
    assert abs(lengths[short].mean() - 34.5) < 2
    assert lengths.max() <= 85
    other = make_batches(tokens, DataConfig(batch_size=4, length=70, random_length=True), 1)
    assert any(other.at(k).rate != batches.at(k).rate for k in range(5))


def test_random_lengths_are_a_function_of_the_step():
    config = DataConfig(batch_size=4, length=20, random_length=True)
    walked, jumped = (make_batches(TOKENS, config, 3) for _ in range(2))
    seen = [walked.at(k) for k in range(90)]
    assert sum(bool(b.reset) for b in seen) >= 3  # three passes, cut at different places
    np.testing.assert_array_equal(jumped.at(88).inputs, seen[88].inputs)
    starts = [k for k, b in enumerate(seen) if b.reset][:3]
    assert seen[starts[1]].rate != seen[0].rate or seen[starts[1] + 1].rate != seen[1].rate


def test_padding_of_a_random_length_changes_nothing_and_scales_the_rate():
    config = DataConfig(batch_size=4, length=20, random_length=True)
    padded = make_batches(TOKENS, config).at(0)
    width = int(padded.mask[:, 0].sum())
    bare = StreamBatches(TOKENS, 4, width).at(0)
    carry = model.init_carry(NETWORK, 4)
    a, (carry_a, _, tokens_a) = compiled_nats(PARAMS, carry, padded)
    b, (carry_b, _, tokens_b) = compiled_nats(PARAMS, carry, bare)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert tokens_a == tokens_b == 4 * width
    for x, y in zip(jax.tree.leaves(carry_a), jax.tree.leaves(carry_b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    optim = OptimConfig(learning_rate=1.0, clip=float("inf"))
    updates = []
    for batch in (padded, bare._replace(rate=None)):
        block = make_block(NETWORK, optim, make_schedule(optim, 10, 10))
        state = init_state(jax.random.key(0), NETWORK, optim, V, 4)
        before = np.asarray(state.params.softmax_b)
        stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)
        after, _, _ = block(state, Hyper(1.0, float("inf")), stacked)
        updates.append(np.asarray(after.params.softmax_b) - before)
    np.testing.assert_allclose(updates[0], updates[1] * width / 20, rtol=1e-4, atol=1e-8)
