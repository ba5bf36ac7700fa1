"""The engine: equal to autodiff through lax.scan, and the properties of a recurrence."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cell_names import EACH_CELL, EVERY_CELL
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cells import B, D, H, T, random_layer, to_oracle

from lm import scans
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.cells.feedback import recurrent_product
from lm.recurrence import as_step, project, unroll, unroll_step

MASK = np.arange(T)[:, None] < np.array([T, 3, 1])[None]  # [T, B]


@cache
def engine(cell):
    """`unroll` of a cell: one function, and so one compiled program, for all tests."""
    return jax.jit(partial(unroll, cell))


def plain(cell):
    return lambda *a: unroll_step(as_step(cell), *a)


@partial(jax.jit, static_argnums=0)
def gradients(run, params, state, x, mask, probe=None):
    """Value and gradient of a loss that sees every output and the last state."""
    shape = (x.shape[0], x.shape[1], state.h.shape[1])
    weights = np.random.default_rng(5).normal(size=shape).astype(x.dtype)

    def loss(params, state, x, probe):
        last, h = run(params, state, x, mask, probe)
        return jnp.sum(h * weights) + sum(jnp.sum(jnp.sin(leaf)) for leaf in last)

    argnums = (0, 1, 2) if probe is None else (0, 1, 2, 3)
    return jax.value_and_grad(loss, argnums=argnums)(params, state, x, probe)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", EACH_CELL)
def test_engine_equals_autodiff_in_float64(name, masked, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    mask = MASK if masked else None
    found = gradients(engine(cell), params, state, x, mask)
    expected = gradients(plain(cell), params, state, x, mask)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected
    )


@pytest.mark.parametrize("time", [4, 5, 7])
def test_several_steps_a_round_are_the_same_steps(time, monkeypatch, x64):
    cell = CELLS["gru"]
    params, state, x = random_layer(cell)
    x = np.concatenate([x, x])[:time]
    mask = np.arange(time)[:, None] < np.array([time, 3, 1])[None]
    one = gradients(lambda *a: unroll(cell, *a), params, state, x, mask)
    monkeypatch.setattr(scans, "steps_a_round", lambda: 5)
    five = gradients(lambda *a: unroll(cell, *a), params, state, x, mask)
    assert "unroll=5" in str(jax.make_jaxpr(lambda x: unroll(cell, params, state, x))(x))
    backward = jax.grad(lambda x: jnp.sum(unroll(cell, params, state, x)[1]))
    assert str(jax.make_jaxpr(backward)(x)).count("unroll=5") == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13), one, five)


@pytest.mark.parametrize("size", [(20, 4, 32), (35, 8, 64)])
@pytest.mark.parametrize("name", EVERY_CELL)
def test_engine_equals_autodiff_in_float32(name, size):
    """Relative to each array's largest entry: single entries near 0 carry rounding of others."""
    cell, (time, batch, hidden) = CELLS[name], size
    rng = np.random.default_rng(0)
    params = init_params(jax.random.key(0), cell, hidden, hidden)
    state = cell.init_state(batch, hidden)
    x = rng.normal(size=(time, batch, hidden)).astype(np.float32)
    found = gradients(engine(cell), params, state, x, None)
    expected = gradients(plain(cell), params, state, x, None)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b), initial=0) <= 1e-5 * np.max(np.abs(b), initial=0)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_probe_gradient_is_dl_ds(name, x64):
    """A probe's gradient, against adding a number to the state by hand and differencing."""
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    zeros = cell.state(*(np.zeros((T, B, H)) for _ in cell.state._fields))
    _, (_, _, _, d_probe) = gradients(engine(cell), params, state, x, None, zeros)
    _, (_, _, _, expected) = gradients(
        lambda p, s, x, m, probe: probed_scan(cell, p, s, x, probe), params, state, x, None, zeros
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), d_probe, expected
    )


def probed_scan(cell, params, state, x, probe):
    """A plain scan, each state with its probe added before it is put out."""

    def step(s, inputs):
        s, _ = as_step(cell)(params, s, inputs[0])
        s = jax.tree.map(jnp.add, s, inputs[1])
        return s, s.h

    return jax.lax.scan(step, state, (x, probe))


@pytest.mark.parametrize("name", EVERY_CELL)
def test_masked_rows_equal_the_oracle(name, x64):
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    last, h = engine(cell)(params, state, x, MASK)
    s = {k: np.array(v) for k, v in state._asdict().items()}
    expected_last, expected = oracles.unroll(name, to_oracle(params), s, np.array(x), MASK)
    np.testing.assert_allclose(h, np.where(MASK[..., None], expected, 0), rtol=1e-12)
    for field, value in expected_last.items():
        np.testing.assert_allclose(getattr(last, field), value, rtol=1e-12)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_padding_changes_nothing(name, x64):
    """What stands in the padding reaches neither values nor gradients."""
    cell = CELLS[name]
    params, state, x = random_layer(cell)
    other = np.where(MASK[..., None], x, 1e3)
    first = gradients(engine(cell), params, state, x, MASK)
    second = gradients(engine(cell), params, state, other, MASK)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), first, second)
    np.testing.assert_array_equal(first[1][2][~MASK], 0)


def test_the_generic_door_takes_any_step(x64):
    """A step that is no Cell, with another state: a leaky sum of squares, by hand in NumPy."""
    x = np.random.default_rng(0).normal(size=(T, B, D))
    state = {"sum": np.ones((B, D)), "count": np.zeros((B, 1))}

    def step(leak, s, x_t):
        total = leak * s["sum"] + x_t**2
        return {"sum": total, "count": s["count"] + 1}, total.sum(axis=-1, keepdims=True)

    def loss(probe):
        last, h = unroll_step(step, 0.5, state, x, MASK, probe)
        return jnp.sum(h[-1]), (last, h)

    probe = {"sum": np.zeros((T, B, D)), "count": np.zeros((T, B, 1))}
    d_probe, (last, h) = jax.jit(jax.grad(loss, has_aux=True))(probe)
    for b, length in enumerate(MASK.sum(axis=0)):
        total = np.ones(D)
        for t in range(length):
            total = 0.5 * total + x[t, b] ** 2
            np.testing.assert_allclose(h[t, b, 0], total.sum(), rtol=1e-13)
        np.testing.assert_array_equal(h[length:, b], 0)
        np.testing.assert_allclose(last["sum"][b], total, rtol=1e-13)
        assert float(last["count"][b, 0]) == length
    expected = 0.5 ** (T - 1 - np.arange(T - 1.0))  # of row 0, the one with no padding
    np.testing.assert_allclose(d_probe["sum"][: T - 1, 0, 0], expected, rtol=1e-13)
    np.testing.assert_array_equal(d_probe["sum"][:, 1:], 0)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(CELLS)), st.integers(1, T - 1), st.integers(0, 99))
def test_unroll_of_a_and_b_is_unroll_of_b_from_the_state_after_a(name, cut, seed):
    cell = CELLS[name]
    params, state, x = random_layer(cell, seed, jnp.float32)
    x = np.asarray(x)
    last, h = engine(cell)(params, state, x)
    middle, h_a = engine(cell)(params, state, x[:cut])
    end, h_b = engine(cell)(params, middle, x[cut:])
    np.testing.assert_allclose(np.concatenate([h_a, h_b]), h, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, last)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(CELLS)), st.integers(0, T - 1), st.integers(0, 99))
def test_the_future_never_leaks_into_the_past(name, t, seed):
    cell = CELLS[name]
    params, state, x = random_layer(cell, seed, jnp.float32)
    other = np.array(x)
    other[t] += 1
    h, changed = (np.asarray(engine(cell)(params, state, seen)[1]) for seen in (x, other))
    np.testing.assert_array_equal(h[:t], changed[:t])
    assert np.any(h[t] != changed[t])


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(sorted(CELLS)), st.integers(0, 99))
def test_a_batch_is_a_loop_over_its_rows(name, seed):
    cell = CELLS[name]
    params, state, x = random_layer(cell, seed, jnp.float32)
    state, x = jax.tree.map(np.asarray, (state, x))
    h = np.asarray(engine(cell)(params, state, x)[1])
    for b in range(B):
        row = jax.tree.map(lambda s, b=b: s[b : b + 1], state)
        _, alone = engine(cell)(params, row, x[:, b : b + 1])
        np.testing.assert_allclose(np.asarray(alone)[:, 0], h[:, b], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_seeds_by_vmap_equal_seeds_one_by_one(name):
    cell = CELLS[name]
    layers = [random_layer(cell, seed, jnp.float32) for seed in range(3)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *layers)
    grads = jax.vmap(partial(gradients, engine(cell), mask=None))(*stacked)
    for k, layer in enumerate(layers):
        one = gradients(engine(cell), *layer, None)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(
                np.asarray(a)[k], b, rtol=1e-4, atol=1e-5 * np.max(np.abs(b), initial=0)
            )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, s, x, m: (p, s, x[..., :-1], m), "wanted [T, B, 5]"),
        (lambda p, s, x, m: (p._replace(w_h=p.w_h[:, :-1]), s, x, m), "do not fit"),
        (lambda p, s, x, m: (p, s._replace(h=s.h[:1]), x, m), "state.h"),
        (lambda p, s, x, m: (p, s, x, m.astype(jnp.float32)), "wanted bool"),
        (lambda p, s, x, m: (p, s, x, m[:-1]), "wanted bool"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, words):
    params, state, x = random_layer(CELLS["lstm"], dtype=jnp.float32)
    with pytest.raises(ValueError) as error:
        unroll(CELLS["lstm"], *change(params, state, x, jnp.asarray(MASK)))
    assert words in str(error.value)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_gauge_reads_the_cotangent_that_goes_by(name, x64):
    """Its gradient is log ||dL/dz_t||; nothing else changes."""
    cell = CELLS[name]
    params, state, x = random_layer(cell)

    def step(params, s, z_t):
        s = cell.gate(params.vectors, s, z_t, recurrent_product(cell, s, params.w_h))
        return s, s.h

    def loss(params, gauge, shift):
        z = project(x, params.w_x, params.b) + shift
        if gauge is None:
            return jnp.sum(unroll_step(step, params, state, z)[1] ** 2)
        return jnp.sum(unroll(cell, params, state, x, gauge=gauge)[1] ** 2)

    shift = np.zeros((*x.shape[:2], params.w_x.shape[1]))
    expected, d_z = jax.jit(jax.grad(loss, argnums=(0, 2)))(params, None, shift)
    gauged, read = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, np.zeros(len(x)), shift)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), expected, gauged)
    np.testing.assert_allclose(np.exp(read), np.linalg.norm(d_z, axis=(1, 2)), rtol=1e-12)
