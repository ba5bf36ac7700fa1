"""Every measure of a foreign cell equals that of ours with its weights, and ours the engine's."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_cells import TWINS, H, random_weights, twin

from lm.cells import CELLS
from lm.gradients.cell_measures import MEASURES, compiled_lags, measure_cell
from lm.gradients.flow import measure_layer_lags
from lm.recurrence import unroll_step

CURVES = ("lags", "jacobians", "lyapunov", "carousel", "time_scale")
WEIGHTS = ("weights", "lengths")
MEASURED = {  # linen's graph is nnx's; Haiku's one array for W_x and W_h is the furthest from ours
    "linen OptimizedLSTMCell": [CURVES],
    "Haiku LSTM": [CURVES, WEIGHTS],
    "Equinox LSTMCell": [CURVES],
}
B, LENGTHS = 3, (1, 3, 7)


@cache
def measured(name, bias, measures):
    """Measures of our cell, once for all its twins. bias: whether a GRU's b_n is there."""
    params, x = random_weights(CELLS[name], jnp.float64)
    if not bias:
        params = params._replace(vectors=tuple(np.zeros_like(v) for v in params.vectors))
    return measure_cell(CELLS[name], params, x=x, measures=measures, lengths=LENGTHS)


def comparable(found):
    """What does not depend on how a library stores its parameters: a pytree of arrays."""
    return {
        "lags": found.lags and found.lags[:],
        "jacobians": found.jacobians,
        "lyapunov": found.lyapunov,
        "carousel": (found.carousel, found.time_scale, forget_gate(found.saturation)),
        "weights": found.weights and found.weights[1:],
        "lengths": found.lengths and found.lengths.total,
    }


def forget_gate(saturation):
    """What is known of every LSTM; of ours there are more gates, of a GRU none in common."""
    return saturation.get("f") if saturation else None


def assert_same(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=where)


@pytest.mark.parametrize(
    ("name", "measures"), [(name, part) for name, parts in MEASURED.items() for part in parts]
)
def test_measures_of_copied_weights_in_float64(name, measures, x64):
    cell, params, foreign, foreign_params, x = twin(name, jnp.float64)
    found = measure_cell(foreign, foreign_params, x=x, measures=measures, lengths=LENGTHS)
    expected = measured(TWINS[name][0], any(np.any(v) for v in params.vectors), measures)
    assert_same(comparable(found), comparable(expected), 1e-10)
    assert found.carry is found.paths is found.truncation is None
    if "carousel" in measures:
        assert (found.carousel is None) == ("c" not in cell.state._fields)


@cache
def engine_curves(name, bias):
    """The engine's own lag curves, once for all twins. In float32."""
    params, x = random_weights(CELLS[name], jnp.float32)
    if not bias:
        params = params._replace(vectors=tuple(np.zeros_like(v) for v in params.vectors))
    run = jax.jit(measure_layer_lags, static_argnums=0)
    return run(CELLS[name], params, CELLS[name].init_state(B, H), x, loss_gradient())


def loss_gradient():
    return jnp.asarray(np.random.default_rng(1).standard_normal((B, H)), jnp.float32)


@pytest.mark.parametrize("name", TWINS)
def test_lag_curves_of_copied_weights_in_float32(name):
    _, params, foreign, foreign_params, x = twin(name, jnp.float32)
    found = measure_cell(foreign, foreign_params, x=x, d_h=loss_gradient(), measures=("lags",)).lags
    engine = engine_curves(TWINS[name][0], any(np.any(v) for v in params.vectors))
    np.testing.assert_allclose(found.state, engine.state, rtol=1e-5, atol=1e-5)
    for field in found.fields:
        curve = getattr(engine, field)
        np.testing.assert_allclose(found.fields[field], curve, rtol=1e-5, atol=1e-5)


def test_our_cells_have_every_measure():
    params, x = random_weights(CELLS["lstm"], jnp.float32)
    cheap = ("lags", "carry", "paths", "truncation", "saturation", "sensitivity")
    found = measure_cell(CELLS["lstm"], params, x=x, direction=params, measures=cheap)
    assert {name for name in MEASURES if getattr(found, name) is not None} == set(cheap)
    assert set(found.saturation) == {"i", "f", "o", "g"}
    # The parts by path sum to the whole, so their norms bound its norm from both sides.
    carried, recurrent = np.exp(found.paths.carried), np.exp(found.paths.recurrent)
    whole = np.exp(found.lags.state)
    assert np.all(whole <= (carried + recurrent) * (1 + 1e-5))
    assert np.all(whole >= np.abs(carried - recurrent) * (1 - 1e-5))
    assert found.truncation.cosine[-1] == pytest.approx(1, abs=1e-5)
    assert found.sensitivity.shape == found.carry.shape == x.shape[:2]


RHO = 0.9
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((H, H)))[0].astype(np.float32)


def rotate(params, state, x_t):
    h = state @ params + x_t
    return h, h


def test_a_scaled_rotation(x64):
    """W = rho Q: the slope is ln rho, the horizon -1 / ln rho, every exponent ln rho."""
    x = jnp.ones((40, B, H))
    found = measure_cell(
        rotate,
        RHO * Q.astype(np.float64),
        x=x,
        state=jnp.zeros((B, H)),
        measures=("lags", "lyapunov", "jacobians", "singular", "carousel"),
    )
    assert found.lags.slope == pytest.approx(np.log(RHO), rel=1e-6)
    assert found.lags.horizon == pytest.approx(-1 / np.log(RHO), rel=1e-6)
    assert found.lags.far_horizon == np.inf
    np.testing.assert_allclose(found.lags.omega, (1 - RHO) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.lags.state[0], np.log(H) / 2)  # d_h = 1
    np.testing.assert_allclose(found.lyapunov, np.log(RHO), rtol=1e-6)
    expected = np.arange(41)[:, None] * np.log(RHO) * np.ones((1, B))
    np.testing.assert_allclose(found.jacobians.spectral, expected, rtol=1e-6, atol=1e-6)
    assert found.singular.lags == (1, 2, 4, 8, 16, 32, 40)
    for lag, values in zip(found.singular.lags, found.singular.log_values, strict=True):
        np.testing.assert_allclose(values, lag * np.log(RHO), rtol=1e-6)
    assert found.carousel is None


def test_an_output_that_is_no_leaf_of_the_state():
    """h_t = 2 s_t: the gradient enters through the last step, so lag 0 has none."""

    def step(params, state, x_t):
        new, _ = rotate(params, state, x_t)
        return new, 2 * rotate(params, state, x_t)[0]

    zero, x = jnp.zeros((B, H)), jnp.ones((5, B, H))
    inner = measure_cell(rotate, RHO * Q, x=x, state=zero, measures=("lags",)).lags
    outer = measure_cell(step, RHO * Q, x=x, state=zero, measures=("lags",))
    assert outer.cell.output is None
    assert np.all(np.isneginf(outer.lags.state[0]))
    np.testing.assert_allclose(outer.lags.state[1:], inner.state[1:] + np.log(2), rtol=1e-5)


def test_lengths_are_the_gradients_of_the_prefixes():
    """Of a step that reads tokens and whose output is not its state, against plain autodiff."""

    def step(params, state, token):
        h = jnp.tanh(params["embedding"][token] + state @ params["w_h"])
        return h, h * h

    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 4, (6, B)))
    params = {"embedding": rng.standard_normal((4, H)), "w_h": rng.standard_normal((H, H))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    zero, lengths = jnp.zeros((B, H)), (1, 6)
    found = measure_cell(
        step, params, x=tokens, state=zero, lengths=lengths, measures=("lengths",)
    ).lengths

    def loss(params, row, length):
        return unroll_step(step, params, zero[:1], tokens[:length, row, None])[1][-1].sum()

    grad = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, None)), static_argnums=2)
    for k, length in enumerate(lengths):
        grads = grad(params, jnp.arange(B), length)
        norms = {name: np.linalg.norm(g, axis=(1, 2)) for name, g in grads.items()}
        for name, norm in norms.items():
            size = np.exp(found.leaves[name][k])
            np.testing.assert_allclose(size, norm, rtol=1e-5, atol=1e-30)
        both = np.hypot(*norms.values())
        np.testing.assert_allclose(np.exp(found.total[k]), both, rtol=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_carry_is_one_only_where_it_is_elementwise(mixed):
    def step(params, state, x_t):
        c = 0.5 * (state["c"] @ params if mixed else state["c"]) + x_t
        return {"c": c, "h": jnp.tanh(c)}, jnp.tanh(c)

    zero, x = {"c": jnp.zeros((B, H)), "h": jnp.zeros((B, H))}, jnp.ones((5, B, H))
    found = measure_cell(step, jnp.asarray(Q), x=x, state=zero, measures=("carousel", "saturation"))
    assert (found.carousel is None) == (found.saturation is None) == mixed
    if not mixed:
        expected = np.arange(6)[:, None, None] * np.log(0.5) * np.ones((1, B, H))
        np.testing.assert_allclose(found.carousel, expected, rtol=1e-6)
        np.testing.assert_array_equal(found.saturation["f"].low, np.zeros(H))
    assert found.time_scale is None  # not asked for


def test_an_equal_cell_is_not_compiled_again():
    sizes = []
    for _ in range(2):
        _, _, cell, params, x = twin("linen SimpleCell", jnp.float32)
        measure_cell(cell, params, x=x, measures=("lags",))
        sizes.append(compiled_lags._cache_size())
    assert sizes[0] == sizes[1]


def test_a_step_without_parameters_has_no_weights():
    found = measure_cell(
        lambda params, s, x_t: (s + x_t,) * 2,
        (),
        x=jnp.ones((5, B, H)),
        state=jnp.zeros((B, H)),
        measures=("lags", "weights", "lengths"),
    )
    assert found.weights is found.lengths is None
    np.testing.assert_allclose(found.lags.state, np.log(H) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measures": ("lag",)}, ["measure is 'lag'", "did you mean 'lags'"]),
        ({"x": jnp.ones((1, B, H))}, ["1 step", "at least 2"]),
        ({"d_h": jnp.ones((B, 2))}, ["d_h has shape (3, 2)", "wanted (3, 6)"]),
        ({"lengths": (0, 3)}, ["lengths are (0, 3)", "1 to 5"]),
        ({"lags": (6,)}, ["lags are (6,)", "1 to 5"]),
        ({"direction": (), "measures": ("sensitivity",)}, ["direction"]),
    ],
)
def test_options_that_do_not_fit(options, words):
    given = {"x": jnp.ones((5, B, H)), "state": jnp.zeros((B, H)), "measures": ()} | options
    with pytest.raises(ValueError) as error:
        measure_cell(rotate, Q, **given)
    for word in words:
        assert word in str(error.value)
