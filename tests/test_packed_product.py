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
from cell_names import EVERY_RECURRENT_CELL
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.machine import user_cache
from lm.native import library
from lm.native.calls import call, like
from lm.native.packed_product import Packed, multiply, pack, pack_transposed, pays
from lm.products import dot
from lm.recurrence import unroll

COMPILER = library.find_compiler() or ""


def has_avx2():
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and {"avx2", "fma"} <= set(cpuinfo.read_text().split())


pytestmark = pytest.mark.skipif(
    not COMPILER or not has_avx2() or os.environ.get(library.SWITCH) == "0",
    reason="no C compiler, no AVX2, or switched off: XLA's products are used",
)


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


@pytest.mark.parametrize("scale", [1, 1e-22], ids=["normal", "denormal"])
def test_a_row_does_not_depend_on_the_others(scale):
    """Nor on the threads: one multiplies a row, several all of them."""
    x = scale * draw(50, 300)
    weights = packed(np.float32(scale) * draw(300, 700, seed=1))
    x = x.astype(np.float32)
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


def test_a_matrix_of_nothing_has_no_panels():
    assert pack(jnp.zeros((5, 0))).shape == (0, 5, 16)


def test_another_type_than_that_of_the_weights_is_left_to_xla(x64):
    x, w = draw(9, 40).astype(np.float64), draw(40, 50, seed=1)
    found = jax.jit(multiply)(x, packed(w))
    assert found.dtype == jnp.float64
    np.testing.assert_array_equal(np.asarray(found), np.asarray(jax.jit(dot)(x, w)))


def test_another_type_is_refused_in_c(x64):
    x = jnp.zeros((9, 40), jnp.float64)
    with pytest.raises(jax.errors.JaxRuntimeError, match="wanted float32"):
        jax.block_until_ready(call("pack", like(x, 3, 9, 16), x))


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


def make_gradient(cell, batch=8, steps=12, hidden=24, dtype=None, mask=None, state_mask=None):
    """(the gradient of a layer's loss, its arguments), of a cell or one by name."""
    cell = CELLS[cell] if isinstance(cell, str) else cell
    params = init_params(jax.random.key(0), cell, 5, hidden)
    state = cell.init_state(batch, hidden)

    def loss(params, x):
        last, h = unroll(cell, params, state, x, mask, state_mask=state_mask, dtype=dtype)
        return jnp.sum(h**2) + jnp.sum(last.h)

    return jax.grad(loss, (0, 1)), (params, jnp.asarray(draw(steps, batch, 5)))


def compile_gradient(cell, lanes=0, **options):
    """The compiled gradient of a layer's loss, of several models at once if `lanes` says so."""
    gradient, args = make_gradient(cell, **options)
    if lanes:
        gradient, args = jax.vmap(gradient), jax.tree.map(lambda a: jnp.stack([a] * lanes), args)
    return jax.jit(gradient).lower(*args).compile(), args


def gradient_program(cell, **options):
    return compile_gradient(cell, **options)[0].as_text()


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_the_scans_multiply_by_packed_weights_both_ways(name):
    text = gradient_program(name, mask=np.ones((12, 8), bool))
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


def test_packing_pays_in_float32_alone(x64):
    assert not pays(jnp.zeros((16, 16), jnp.float64), 20, 20)
    assert pays(jnp.zeros((16, 16), jnp.float32), 20, 20)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A user whose cache is empty; call it for the library as a new process would find it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", COMPILER)
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
    path = user_cache() / "native" / f"{library.make_key(COMPILER)}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF of a disk that was full")
    assert fresh() is not None
    assert path.stat().st_size > 5000


def test_no_library_without_a_compiler(fresh, monkeypatch, tmp_path):
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh() is None


def test_no_library_where_the_compiler_hangs(fresh, monkeypatch, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(library, "LONGEST_SECONDS", 0.2)
    assert fresh() is None
    assert kept(tmp_path) == []


def test_no_library_on_another_kind_of_processor(fresh, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert fresh() is None


@pytest.mark.parametrize("what", ["folder", "library"])
def test_what_others_may_have_written_is_not_opened(what, fresh, tmp_path):
    folder = tmp_path / "recurrent-lm" / "native"
    assert Path(fresh()._name).parent == folder
    path = folder if what == "folder" else next(folder.iterdir())
    path.chmod(0o777)
    assert Path(fresh()._name).parent != folder


def test_of_libraries_made_at_once_the_first_stays(fresh, tmp_path):
    path = tmp_path / "native" / "key.so"
    library.make_library(COMPILER, path)
    first = path.stat().st_ino
    exists = type(path).exists
    with pytest.MonkeyPatch.context() as patch:  # as if the other were made meanwhile
        patch.setattr(type(path), "exists", lambda self: self != path and exists(self))
        library.make_library(COMPILER, path)
    assert path.stat().st_ino == first
    assert [one.name for one in path.parent.iterdir()] == ["key.so"]


def test_no_library_where_the_compiler_fails(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    assert fresh() is None
    assert kept(tmp_path) == []


def test_a_process_that_cannot_keep_its_library_makes_its_own(fresh, tmp_path):
    (tmp_path / "recurrent-lm").write_text("a file where a folder should be")
    found = fresh()
    assert found.softmax_gradient
    assert not Path(found._name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["recurrent-lm"]


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


def test_switched_off_the_engine_is_xlas():
    """A process of its own: what is compiled is decided once."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_packed_product import gradient_program, library\n"
        "assert not library.load_library()\n"
        "assert 'lm_' not in gradient_program('lstm')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, library.SWITCH: "0"},
    )


OPTIONS = {
    "plain": {},
    "padded": {"mask": np.arange(12)[:, None] < np.arange(5, 35)[None]},
    "dropout": {"state_mask": np.float32(1.5) * (np.arange(600).reshape(30, 20) % 3 > 0)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", EVERY_RECURRENT_CELL)
def test_gradients_are_those_of_xlas_product(name, options, monkeypatch):
    """In scans, with blocks of rows, and panels of columns, that are not full."""
    monkeypatch.setattr("lm.recurrence.find_loop", lambda *_: None)
    sizes = {"batch": 30, "hidden": 20, **OPTIONS[options]}
    program, args = compile_gradient(name, **sizes)
    assert "lm_packed_product" in program.as_text()
    found = program(*args)
    monkeypatch.setattr("lm.native.packed_product.pays", lambda *_: False)
    program, args = compile_gradient(name, **sizes)
    assert "lm_pack" not in program.as_text()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(program(*args)), strict=True):
        if one.size:
            bound = 1e-5 * float(jnp.abs(other).max())
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=bound)


def test_curvature_is_that_of_xlas_product(monkeypatch):
    """Reverse over reverse of the scans, which needs the derivative of the product."""
    monkeypatch.setattr("lm.recurrence.find_loop", lambda *_: None)

    def curvature():
        gradient, args = make_gradient("lstm")
        steep = lambda *args: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(*args)))  # noqa: E731
        return jax.jit(jax.grad(steep, (0, 1)))(*args)

    found = jax.tree.leaves(curvature())
    monkeypatch.setattr("lm.native.packed_product.pays", lambda *_: False)
    for one, other in zip(found, jax.tree.leaves(curvature()), strict=True):
        bound = 1e-5 * float(jnp.abs(other).max(initial=0))
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-4, atol=bound)
