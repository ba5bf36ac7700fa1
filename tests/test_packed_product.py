"""The product with packed weights, in C: right on any threads, and no loss where it is not."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.native import library
from lm.native.packed_product import Packed, is_worth, multiply, pack, pack_transposed
from lm.recurrence import unroll

pytestmark = pytest.mark.skipif(
    library.find_compiler() is None, reason="there is no C compiler: XLA's products are used"
)
COMPILER = library.find_compiler() or ""


@pytest.fixture(autouse=True, scope="module")
def _loaded():
    assert library.load_library(), "there is a C compiler, and no library"


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def packed(w):
    w = jnp.asarray(w)
    return Packed(pack(w), w)


def check(rows, depth, columns):
    x, w = draw(rows, depth), draw(depth, columns, seed=1)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    # Of a sum of products in order, half an ulp of the largest partial sum each.
    bound = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(w))
    for weights in (packed(w), Packed(pack_transposed(jnp.asarray(w.T.copy())), jnp.asarray(w))):
        found = np.asarray(jax.jit(multiply)(x, weights))
        assert found.shape == (rows, columns)
        assert np.all(np.abs(found - exact) <= bound)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 70))
def test_any_shape_is_multiplied(rows, depth, columns):
    check(rows, depth, columns)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(20, 650, 2600), (64, 512, 1030)])
def test_shapes_that_several_threads_share(rows, depth, columns):
    check(rows, depth, columns)


def test_panels_hold_the_columns_and_then_zeros():
    w = draw(5, 37)
    panels = np.asarray(pack(jnp.asarray(w)))
    assert panels.shape == (3, 5, 16)
    joined = panels.transpose(1, 0, 2).reshape(5, 48)
    np.testing.assert_array_equal(joined[:, :37], w)
    np.testing.assert_array_equal(joined[:, 37:], 0)
    np.testing.assert_array_equal(np.asarray(pack_transposed(jnp.asarray(w.T.copy()))), panels)


def test_a_row_does_not_depend_on_the_others():
    x, weights = draw(50, 300), packed(draw(300, 700, seed=1))
    together = np.asarray(multiply(x, weights))
    for rows in (slice(0, 1), slice(7, 20), slice(30, 50)):
        np.testing.assert_array_equal(np.asarray(multiply(x[rows], weights)), together[rows])


def test_what_is_not_finite_stays_where_it_is():
    x, w = draw(9, 40), draw(40, 50, seed=1)
    x[2, 3], x[5, 0] = np.nan, np.inf
    found = np.asarray(multiply(x, packed(w)))
    assert np.isnan(found[2]).all()
    assert np.isinf(found[5]).all()
    assert np.isfinite(np.delete(found, [2, 5], axis=0)).all()


def test_many_products_at_once_disturb_none():
    """More callers than threads: helpers come late, or when all is over."""
    weights, x = packed(draw(200, 800, seed=1)), draw(20, 200)
    product = jax.jit(lambda x, w: jax.lax.scan(lambda c, _: (multiply(c, w)[:, :200], None), x,
                                                None, length=40)[0])  # fmt: skip
    wanted, found = np.asarray(product(x, weights)), [None] * 6

    def run(k):
        for _ in range(5):
            found[k] = np.asarray(product(x, weights))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_array_equal(one, wanted)


def gradient_program(name, batch=8, steps=12, hidden=24, dtype=None, lanes=0):
    """The compiled text of a layer's gradient."""
    cell = CELLS[name]
    params = init_params(jax.random.key(0), cell, 5, hidden)
    state = cell.init_state(batch, hidden)

    def loss(params, x):
        return jnp.sum(unroll(cell, params, state, x, dtype=dtype)[1] ** 2)

    x = jnp.asarray(draw(steps, batch, 5))
    gradient = jax.grad(loss)
    if lanes:
        gradient, params = (
            jax.vmap(gradient, (0, None)),
            jax.tree.map(lambda leaf: jnp.stack([leaf] * lanes), params),
        )
    return jax.jit(gradient).lower(params, x).compile().as_text()


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_the_engine_multiplies_by_packed_weights_both_ways(name):
    text = gradient_program(name)
    assert text.count('custom_call_target="lm_packed_product"') == 2
    assert text.count('custom_call_target="lm_pack"') == 1
    assert text.count('custom_call_target="lm_pack_transposed"') == 1


@pytest.mark.parametrize(
    "options",
    [{"batch": 3}, {"steps": 7}, {"dtype": jnp.bfloat16}, {"lanes": 2}],
    ids=["few rows", "few steps", "bfloat16", "several models at once"],
)
def test_elsewhere_the_product_is_xlas(options):
    assert "lm_pack" not in gradient_program("lstm", **options)


def test_lanes_agree_with_one_after_another():
    x, w = draw(3, 6, 20), draw(3, 20, 30, seed=1)
    weights = Packed(jax.vmap(pack)(w), jnp.asarray(w))
    together = jax.vmap(multiply)(x, weights)
    for k in range(3):
        one = multiply(x[k], packed(w[k]))
        np.testing.assert_allclose(np.asarray(together[k]), np.asarray(one), rtol=1e-5, atol=1e-5)
    shared = jax.vmap(multiply, (0, None))(x, packed(w[0]))
    np.testing.assert_allclose(np.asarray(shared[1]), x[1] @ w[0], rtol=1e-5, atol=1e-5)


def test_float64_is_left_to_xla(x64):
    assert not is_worth(jnp.zeros((16, 16), jnp.float64), 20, 20)
    assert is_worth(jnp.zeros((16, 16), jnp.float32), 20, 20)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A user whose cache is empty; call it for the library as a new process would find it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return library.find_library


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "recurrent-lm" / "native").iterdir())


def test_the_library_is_made_once_and_leaves_nothing_else(fresh, tmp_path):
    assert isinstance(fresh(), ctypes.CDLL)
    first = kept(tmp_path)
    assert first == [f"{library.make_key(COMPILER)}.so"]
    before = (tmp_path / "recurrent-lm" / "native" / first[0]).stat().st_mtime_ns
    assert fresh() is not None
    assert kept(tmp_path) == first
    assert (tmp_path / "recurrent-lm" / "native" / first[0]).stat().st_mtime_ns == before


def test_a_damaged_library_is_made_anew(fresh, tmp_path):
    path = library.cache_folder() / f"{library.make_key(COMPILER)}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF of a disk that was full")
    assert fresh() is not None
    assert path.stat().st_size > 5000


def test_no_library_without_a_compiler(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh() is None


def test_no_library_where_the_compiler_fails(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    assert fresh() is None
    assert kept(tmp_path) == []


def test_no_library_where_the_cache_cannot_be_written(fresh, monkeypatch, tmp_path):
    (tmp_path / "recurrent-lm").write_text("a file where a folder should be")
    assert fresh() is None


def test_the_key_tells_processor_compiler_and_source(monkeypatch, tmp_path):
    key = library.make_key(COMPILER)
    assert library.make_key(sys.executable) != key
    monkeypatch.setattr(library, "describe_processor", lambda: "another")
    assert library.make_key(COMPILER) != key
    monkeypatch.undo()
    for source in library.FOLDER.glob("*.[ch]"):
        (tmp_path / source.name).write_text(source.read_text() + "\n")
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert library.make_key(COMPILER) != key


def test_switched_off_the_engine_is_xlas_and_finds_the_same(tmp_path):
    """A process of its own: what is compiled is decided once."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_packed_product import gradient_program, library\n"
        "assert not library.load_library()\n"
        "assert 'lm_pack' not in gradient_program('lstm')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, library.SWITCH: "0"},
    )


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_gradients_are_those_without_packed_weights(name, monkeypatch):
    cell = CELLS[name]
    params = init_params(jax.random.key(0), cell, 5, 40)
    x, state = jnp.asarray(draw(20, 30, 5)), cell.init_state(30, 40)

    def loss(params, x):
        last, h = unroll(cell, params, state, x)
        return jnp.sum(h**2) + jnp.sum(last.h)

    found = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    monkeypatch.setattr("lm.native.packed_product.is_worth", lambda *_: False)
    wanted = jax.jit(jax.grad(lambda *args: loss(*args), (0, 1)))(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max())
        )
