"""Every cell against its float64 oracle, Flax, and its own automatic derivative."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cell_names import EACH_CELL

from lm import model
from lm.cells import CELLS
from lm.cells.cell import init_params, make_linearize, pull_back_tape
from lm.cells.feedback import gather, recurrent_product, spread
from lm.config import ModelConfig
from lm.products import add_bias
from lm.recurrence import unroll

T, B, D, H = 7, 3, 5, 6


@cache
def random_layer(cell, seed=0, dtype=jnp.float64):
    """Parameters, state and inputs with nothing at 0."""
    rng = np.random.default_rng(seed)

    def normal(shape):
        return jnp.asarray(rng.normal(size=shape).astype(dtype))

    params = init_params(jax.random.key(seed), cell, D, H, dtype=dtype)
    params = params._replace(
        b=normal(params.b.shape), vectors=tuple(normal(v.shape) for v in params.vectors)
    )
    state = cell.state(*(normal((B, H)) for _ in cell.state._fields))
    return params, state, normal((T, B, D))


def to_oracle(params):
    return {
        "w_x": np.array(params.w_x),
        "w_h": np.array(params.w_h),
        "b": np.array(params.b),
        "vectors": [np.array(v) for v in params.vectors],
    }


def test_every_cell_has_an_oracle():
    assert set(CELLS) == set(oracles.STEPS) == set(oracles.FIELDS)


@pytest.mark.parametrize("name", EACH_CELL)
def test_forward_equals_oracle(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    last, h = jax.jit(partial(unroll, cell))(params, state, x)
    s, expected = oracles.unroll(
        name, to_oracle(params), {k: np.array(v) for k, v in state._asdict().items()}, np.array(x)
    )
    np.testing.assert_allclose(h, expected, rtol=1e-12)
    for field, value in s.items():
        np.testing.assert_allclose(getattr(last, field), value, rtol=1e-12)


@pytest.mark.parametrize("name", EACH_CELL)
def test_gradient_equals_central_differences(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell, seed=1)
    weights = np.random.default_rng(9).normal(size=(T, B, H))

    def loss(params, state, x):
        last, h = unroll(cell, params, state, x)
        return jnp.sum(h * weights) + sum(jnp.sum(leaf**2) for leaf in last)

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, state, x)
    p, xs = to_oracle(params), np.array(x)
    s = {k: np.array(v) for k, v in state._asdict().items()}

    def oracle_loss():
        last, h = oracles.unroll(name, p, s, xs)
        return np.sum(h * weights) + sum(np.sum(v**2) for v in last.values())

    pairs = [(grads[0].w_x, p["w_x"]), (grads[0].w_h, p["w_h"]), (grads[0].b, p["b"])]
    pairs += list(zip(grads[0].vectors, p["vectors"], strict=True))
    pairs += [(getattr(grads[1], k), s[k]) for k in s] + [(grads[2], xs)]
    for ours, array in pairs:
        # Central differences in float64 are themselves right to about 1e-9.
        np.testing.assert_allclose(
            ours, oracles.numeric_gradient(oracle_loss, array), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("name", EACH_CELL)
def test_linearize_by_hand_equals_autodiff_of_the_gates(name, x64):
    cell = CELLS[name]

    def step(params, state, x_t, linearize, pull_back):
        z = add_bias(x_t @ params.w_x, params.b)
        u = recurrent_product(cell, state, params.w_h)
        new, tape = linearize(params.vectors, state, z, u)
        return new, tuple(pull_back(tape, jax.tree.map(jnp.cos, state)))

    params, state, x = random_layer(cell, seed=2)
    (new, pulled), (expected, auto_pulled) = (
        jax.jit(partial(step, linearize=linearize, pull_back=pull_back))(params, state, x[0])
        for linearize, pull_back in [
            (cell.linearize, cell.pull_back),
            (make_linearize(cell.gate), pull_back_tape),
        ]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), new, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), pulled, auto_pulled
    )


@pytest.mark.parametrize("forget_bias", [0.0, 1.0, 3.5])
def test_forget_bias_is_in_the_forget_gate_alone(forget_bias):
    cell = CELLS["lstm"]
    b = init_params(jax.random.key(0), cell, D, H, forget_bias=forget_bias).b.reshape(4, H)
    assert cell.gates[1] == "f"
    np.testing.assert_array_equal(b[1], np.full(H, forget_bias, np.float32))
    np.testing.assert_array_equal(np.delete(b, 1, axis=0), 0)


@pytest.mark.parametrize("name", EACH_CELL)
def test_recurrent_weights_start_orthogonal_or_as_the_identity(name):
    cell = CELLS[name]
    w_h = init_params(jax.random.key(3), cell, D, H, recurrent_gain=0.5).w_h
    blocks = {"mingru": 0, "minlstm": 0, "fgr": 4 + 9}.get(name, len(cell.gates))
    assert w_h.shape == (H, blocks * H)
    for block in np.split(w_h, range(H, w_h.shape[1], H), axis=1) if w_h.size else ():
        np.testing.assert_allclose(block.T @ block, 0.25 * np.eye(H), atol=1e-6)
    if name == "irnn":
        np.testing.assert_array_equal(w_h, 0.5 * np.eye(H))


@pytest.mark.parametrize("init", ["orthogonal", "identity", "gaussian"])
def test_recurrent_weights_start_as_told(init):
    hidden = 200
    w_h = init_params(jax.random.key(3), CELLS["gru"], D, hidden, recurrent_init=init).w_h
    blocks = np.split(np.asarray(w_h), 3, axis=1)
    for block in blocks:
        values = np.linalg.svd(block, compute_uv=False)
        if init == "gaussian":  # Marchenko & Pastur: singular values from 0 to 2
            np.testing.assert_allclose([values[0], values[-1]], [2, 0], atol=0.15)
            assert np.mean(values**2) == pytest.approx(1, abs=0.03)
        else:
            np.testing.assert_allclose(values, 1, rtol=1e-5)
    assert (np.array_equal(blocks[0], blocks[1])) == (init == "identity")


def test_gains_of_a_layer_norm_start_at_one_and_its_biases_come_after_it():
    cell = CELLS["lnlstm"]
    params = init_params(jax.random.key(0), cell, D, H, forget_bias=2.5)
    s_x, s_h, b, s_c, b_c = params.vectors
    for gain in (s_x, s_h, s_c):
        np.testing.assert_array_equal(gain, 1)
    np.testing.assert_array_equal(b, np.repeat([0.0, 2.5, 0.0, 0.0], H))
    np.testing.assert_array_equal(b_c, 0)
    assert params.b.shape == (0,)
    config = ModelConfig(cell="lnlstm", hidden_size=H, embedding_size=D, init="uniform")
    drawn = model.init(jax.random.key(0), config, 11).layers[0].vectors
    for uniform, start in zip(drawn, (1, 1, np.repeat([0, 1, 0, 0], H), 1, 0), strict=True):
        assert 0 < np.abs(np.asarray(uniform) - start).max() <= config.init_range + 1e-6


def test_a_layer_norm_does_not_see_how_large_its_weights_are(x64):
    cell = CELLS["lnlstm"]
    params, state, x = random_layer(cell)
    scales = ((1e3, 1e3), (1e6, 1e4))  # so large that epsilon does not count
    h, same = (
        unroll(cell, params._replace(w_x=a * params.w_x, w_h=b * params.w_h), state, x)[1]
        for a, b in scales
    )
    np.testing.assert_allclose(h, same, rtol=1e-7, atol=1e-9)


def test_what_is_fed_back_is_laid_out_as_it_is_gathered():
    """`gather` is the transpose of `spread`, so what `spread` leaves at 0 gets no gradient."""
    cell = CELLS["fgr"]
    w_h = jax.random.normal(jax.random.key(0), (H, 13 * H))
    wide = spread(cell, w_h)
    assert wide.shape == (4 * H, 4 * H)
    np.testing.assert_array_equal(wide[:H], w_h[:, : 4 * H])
    np.testing.assert_array_equal(wide[H:, 3 * H :], 0)
    np.testing.assert_array_equal(gather(cell, wide), w_h)
    pulled = jax.vjp(lambda w: spread(cell, w), w_h)[1](jnp.cos(wide))[0]
    np.testing.assert_array_equal(gather(cell, jnp.cos(wide)), pulled)


# Flax names the products of input and state by gate; columns go where our packing puts them.
FLAX = {
    "rnn": (nn.SimpleCell, {"i": "h"}, {"h": "h"}, ("h",)),
    "gru": (nn.GRUCell, {"ir": "r", "iz": "q", "in": "n"}, {"hr": "r", "hz": "q", "hn": "n"}, ()),
    "lstm": (
        nn.OptimizedLSTMCell,
        {"ii": "i", "if": "f", "io": "o", "ig": "g"},
        {"hi": "i", "hf": "f", "ho": "o", "hg": "g"},
        ("i", "f", "o", "g"),
    ),
}


@pytest.mark.parametrize("name", FLAX)
def test_parity_with_flax_with_copied_weights(name):
    """Flax puts the bias of RNN and LSTM on the recurrent product, the GRU's on the input."""
    cell = CELLS[name]
    params, state, x = random_layer(cell, seed=4, dtype=jnp.float32)
    module, from_input, from_state, bias_on_state = FLAX[name]

    def columns(array, gate):
        k = cell.gates.index(gate)
        return array[..., k * H : (k + 1) * H]

    tree = {}
    for key, gate in from_input.items():
        tree[key] = {"kernel": columns(params.w_x, gate)}
        if gate not in bias_on_state:
            tree[key]["bias"] = columns(params.b, gate)
    for key, gate in from_state.items():
        tree[key] = {"kernel": columns(params.w_h, gate)}
        if gate in bias_on_state:
            tree[key]["bias"] = columns(params.b, gate)
    if name == "gru":
        tree["hn"]["bias"] = params.vectors[0]
    if name == "rnn":  # SimpleCell: dense `i` has the bias, `h` none
        tree = {
            "i": {"kernel": params.w_x, "bias": params.b},
            "h": {"kernel": params.w_h},
        }
    flax_cell = module(features=H)
    carry = (state.c, state.h) if name == "lstm" else state.h
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = unroll(cell, params, state, x)[1]
        for t in range(T):
            carry, h = flax_cell.apply({"params": tree}, carry, x[t])
            np.testing.assert_allclose(ours[t], h, rtol=1e-5, atol=1e-6)
