"""A cell's loops in C: for which cells there is code, and that it computes what the scans do."""

import contextlib
import dataclasses
import re
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_names import EVERY_RECURRENT_CELL
from test_packed_product import (  # noqa: F401 - skipped where that is
    _loaded,
    compile_gradient,
    draw,
    gradient_program,
    make_gradient,
    pytestmark,
)

from lm.cells import CELLS
from lm.cells.cell import Pulled, Vector, init_params, make_cell, split_gates
from lm.cells.gru import GRUState
from lm.cells.lstm import LSTMState
from lm.cells.rnn import RNNState
from lm.native import library
from lm.native.cell_code import UnsupportedError, translate, write_cell
from lm.native.loop import Loop, call_forward, find_loop
from lm.recurrence import recur, run_forward, unroll

# Full gate recurrence reads more than h, and a norm takes means over units.
BY_SCAN = ("fgr", "lnlstm", "mingru", "minlstm")


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_whose_gates_are_elementwise_has_code(name):
    assert (write_cell(CELLS[name], 6, 20) is None) == (name in BY_SCAN)


@pytest.mark.parametrize("name", ["lstm", "gru", "peephole", "cifg"])
def test_the_code_is_the_same_at_any_size(name):
    codes = {write_cell(CELLS[name], *size) for size in [(4, 3), (7, 11), (64, 512)]}
    assert len(codes) == 1


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_a_layer_is_one_call_each_way(name):
    text = gradient_program(name)
    for function, count in {"lm_run_cell": 1, "lm_pull_cell": 1, "lm_pack": 0, "while": 0}.items():
        found = text.count(f'custom_call_target="{function}') + text.count(f" {function}(")
        assert found == count, function


ELSEWHERE = {
    "few rows": {"batch": 3},
    "few steps": {"steps": 7},
    "bfloat16": {"dtype": jnp.bfloat16},
    "several models at once": {"lanes": 2},
    "padded": {"mask": np.ones((12, 8), bool)},
    "dropout": {"state_mask": np.ones((8, 24), np.float32)},
}


@pytest.mark.parametrize("options", ELSEWHERE)
def test_elsewhere_it_is_a_scan(options):
    assert "lm_run_cell" not in gradient_program("lstm", **ELSEWHERE[options])


def by_scan(monkeypatch):
    monkeypatch.setattr("lm.recurrence.find_loop", lambda *_: None)


def check_close(found, wanted, rtol=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if other.size:
            assert np.isfinite(np.asarray(other)).all()
            bound = rtol * float(jnp.abs(other).max())
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=bound)


# One block of rows and one panel, several, and neither filled.
# The last is shared by two threads.
SIZES = [(4, 16, 8), (30, 20, 12), (64, 9, 10), (20, 203, 9)]


@pytest.mark.parametrize(("batch", "hidden", "steps"), SIZES)
@pytest.mark.parametrize("name", EVERY_RECURRENT_CELL)
def test_gradients_are_those_of_the_scans(name, batch, hidden, steps, monkeypatch):
    """Of W_x, W_h, biases, peepholes, x and s_0, which is not 0."""
    if name in BY_SCAN:
        pytest.skip("there is no code for it")
    cell = CELLS[name]
    params = init_params(jax.random.key(0), cell, 5, hidden)
    params = params._replace(
        b=jnp.asarray(draw(params.b.size)),
        vectors=tuple(jnp.asarray(draw(v.size, seed=k)) for k, v in enumerate(params.vectors)),
    )
    zero = cell.init_state(batch, hidden)
    state = type(zero)(*(jnp.asarray(draw(batch, hidden, seed=k)) for k in range(len(zero))))
    weigh, x = draw(steps, batch, hidden, seed=7), jnp.asarray(draw(steps, batch, 5, seed=8))

    def loss(params, state, x):
        last, h = unroll(cell, params, state, x)
        return jnp.sum(h * weigh) + sum(jnp.sum(jnp.sin(field)) for field in last)

    def compute():
        program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(params, state, x).compile()
        return program.as_text(), program(params, state, x)

    text, found = compute()
    assert "lm_run_cell" in text
    assert "lm_pull_cell" in text
    by_scan(monkeypatch)
    text, wanted = compute()
    assert "lm_run_cell" not in text
    check_close(found, wanted, 2e-5)


@pytest.mark.parametrize("name", ["gru", "lstm", "peephole"])
def test_the_tape_is_that_of_the_scan(name, monkeypatch):
    """The laboratory reads it."""
    cell = CELLS[name]
    params = init_params(jax.random.key(1), cell, 5, 20)
    state, z = cell.init_state(6, 20), jnp.asarray(draw(9, 6, 20 * len(cell.gates)))
    run = lambda z: run_forward(cell, params.w_h, params.vectors, state, z, None)  # noqa: E731
    found = jax.jit(run)(z)
    by_scan(monkeypatch)
    wanted = jax.jit(lambda z: run(z))(z)
    assert type(found[1].tape) is type(wanted[1].tape)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape
    check_close(found, wanted)


def forward(name, x, batch=6, hidden=20):
    cell = CELLS[name]
    params = init_params(jax.random.key(0), cell, x.shape[-1], hidden)
    return unroll(cell, params, cell.init_state(batch, hidden), x)


def forward_program(name):
    run = jax.jit(lambda x: forward(name, x)[1])
    return lambda x: np.asarray(run(x))


def test_probes_are_answered_by_the_scan_backward(monkeypatch):
    """The tape is made in C, and dL/ds_t read off on the way back."""
    cell, x = CELLS["lstm"], jnp.asarray(draw(9, 6, 5))
    params = init_params(jax.random.key(0), cell, 5, 20)
    state, probe = cell.init_state(6, 20), LSTMState(*jnp.zeros((2, 9, 6, 20)))

    def compute():
        def loss(probe):
            return jnp.sum(unroll(cell, params, state, x, probe=probe)[1] ** 2)

        return jax.jit(jax.grad(loss))(probe)

    found = compute()
    assert all(jnp.abs(field[:-1]).max(axis=(1, 2)).all() for field in found)
    by_scan(monkeypatch)
    check_close(found, compute())


def run_inputs(name, z, keeps_tape=False):
    """h [T, B, H] of a cell, given z [T, B, K]."""
    cell, hidden = CELLS[name], z.shape[-1] // len(CELLS[name].gates)
    params = init_params(jax.random.key(0), cell, 1, hidden)
    state = cell.init_state(z.shape[1], hidden)
    if keeps_tape:
        return run_forward(cell, params.w_h, params.vectors, state, z, None)[1].h
    return recur(cell, None, params.w_h, params.vectors, state, z, None, None)[1]


def test_an_evaluation_keeps_no_tape():
    z = jnp.asarray(draw(9, 6, 80))
    program = jax.jit(partial(run_inputs, "lstm")).lower(z).compile()
    results = re.search(r"= \((.*)\) custom-call\(.*lm_run_cell", program.as_text())[1]
    assert results.count("f32[") == 4  # room, c_T, h_T and h
    with_tape = jax.jit(partial(run_inputs, "lstm", keeps_tape=True))(z)
    check_close(program(z), with_tape, 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["rnn", "irnn", "gru", "lstm"])
def test_what_is_not_finite_stays_in_its_row(name, bad, monkeypatch):
    x = draw(9, 6, 5)
    clean = forward_program(name)(x)
    x[3, 2, 0] = bad
    found = forward_program(name)(x)
    others = np.delete(np.arange(6), 2)
    np.testing.assert_array_equal(found[:, others], clean[:, others])
    np.testing.assert_array_equal(found[:3], clean[:3])
    by_scan(monkeypatch)
    np.testing.assert_allclose(found, forward_program(name)(x), rtol=1e-5, atol=1e-6)
    assert np.isnan(found[3, 2]).all() or bad is not np.nan


def test_a_row_does_not_depend_on_the_others_nor_on_threads():
    """One thread runs few rows, several run all of them."""
    z = draw(8, 60, 600)
    run = jax.jit(partial(run_inputs, "gru"))
    together = np.asarray(run(z))
    for rows in (slice(0, 4), slice(30, 53)):
        np.testing.assert_array_equal(np.asarray(run(z[:, rows])), together[:, rows])


def test_many_layers_at_once_disturb_none():
    """More callers than threads: helpers come late, leave, and are sent for again."""
    x = draw(40, 20, 200)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(forward("lstm", x, 20, 200)[1] ** 2)))
    wanted, found = np.asarray(gradient(x)), [None] * 6

    def run(k):
        for _ in range(3):
            found[k] = np.asarray(gradient(x))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize(("name", "exact"), [("rnn", np.tanh), ("nog", None)])
def test_activations_have_the_precision_of_float32(name, exact):
    """tanh(z), or tanh(sigmoid(z) * tanh(1)): W_h is 0, and nothing was stored before."""
    cell, z = CELLS[name], np.linspace(-30, 30, 8 * 4 * 320, dtype=np.float32).reshape(8, 4, 320)
    gates = {"i": z, "f": 0 * z, "g": 0 * z + 1, "h": z}
    inputs = np.concatenate([gates[gate] for gate in cell.gates], axis=-1)
    w_h = jnp.zeros((320, 320 * len(cell.gates)))
    params = init_params(jax.random.key(0), cell, 1, 320)._replace(w_h=w_h)
    state = cell.init_state(4, 320)
    run = lambda z: run_forward(cell, w_h, params.vectors, state, z, None)[1].h  # noqa: E731
    assert "lm_run_cell" in jax.jit(run).lower(inputs).compile().as_text()
    found = np.asarray(jax.jit(run)(inputs), np.float64)
    assert (found[np.abs(z) > 10] != 0).all()
    if exact is None:
        first = np.tanh(np.tanh(1.0) / (1 + np.exp(-z[0].astype(np.float64))))
        np.testing.assert_allclose(found[0], first, rtol=2e-6)
    else:
        np.testing.assert_allclose(found, exact(z.astype(np.float64)), rtol=5e-7, atol=1e-12)
        assert set(np.abs(found[np.abs(z) > 9.5])) == {1.0}
        small = jnp.asarray(1e-5 * z)
        np.testing.assert_array_equal(np.asarray(jax.jit(run)(small)), np.asarray(small))


def test_several_models_at_once_agree_with_one_after_another():
    x = draw(3, 9, 6, 5)
    gradient = jax.grad(lambda x: jnp.sum(forward("lstm", x)[1] ** 2))
    together = jax.jit(jax.vmap(gradient))(x)
    for k in range(3):
        check_close(together[k], jax.jit(gradient)(x[k]))


@pytest.mark.parametrize("name", ["gru", "cifg"])
def test_curvature_is_that_of_the_scan(name, monkeypatch):
    """Reverse over reverse."""

    def curvature():
        gradient, args = make_gradient(name)
        steep = lambda *args: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(*args)))  # noqa: E731
        return jax.jit(jax.grad(steep, (0, 1)))(*args)

    found = curvature()
    by_scan(monkeypatch)
    check_close(found, curvature(), 1e-4)


def compile_both_ways(cell, monkeypatch, **options):
    """(gradients by loops in C, by scans)."""
    program, args = compile_gradient(cell, **options)
    assert "lm_pull_cell" in program.as_text()
    by_scan(monkeypatch)
    scan, _ = compile_gradient(cell, **options)
    assert "lm_run_cell" not in scan.as_text()
    return program(*args), scan(*args)


def own_cell(equations, gates="ab", state=RNNState, **options):
    return make_cell("a user's", tuple(gates), state, equations, **options)


def elementwise(vectors, state, z, u):
    a, b = split_gates(z + u, 2)
    return RNNState(jnp.tanh(jnp.maximum(a, state.h) * jax.nn.sigmoid(b) - a**2))


def test_a_users_own_cell_gets_its_loops_too(monkeypatch):
    check_close(*compile_both_ways(own_cell(elementwise), monkeypatch))


@jax.custom_vjp
def own_derivative(a):
    return a


own_derivative.defvjp(lambda a: (a, None), lambda _, d: (2 * d,))


OWN = {
    "an own derivative": lambda a, h: own_derivative(jnp.tanh(a)),
    "one over H": lambda a, h: jnp.tanh(a + 1 / a.shape[-1]),
    "one over B": lambda a, h: jnp.tanh(a + 1 / a.shape[0]),
    "a branch on H": lambda a, h: jnp.tanh(a) if a.shape[-1] < 16 else jnp.tanh(a - h),
}


@pytest.mark.parametrize("what", OWN)
def test_a_cell_that_makes_numbers_of_shapes_or_derivatives(what, monkeypatch):
    cell = own_cell(lambda _, s, z, u: RNNState(OWN[what](z + u, s.h)), gates="a")
    check_close(*compile_both_ways(cell, monkeypatch, batch=30, hidden=20))


# Each says that its units are alike, and has something of which there is no such code.
REFUSED = {
    "a mean over units": lambda a, h: a - jnp.mean(a, axis=-1, keepdims=True),
    "a mean over rows": lambda a, h: a - jnp.mean(a, axis=0, keepdims=True),
    "the next unit": lambda a, h: a + jnp.roll(h, 1, axis=-1),
    "the next row": lambda a, h: a + jnp.roll(h, 1, axis=0),
    "the first row": lambda a, h: a + h[:1],
    "the first row, held fixed": lambda a, h: a + jax.lax.stop_gradient(h[:1]),
    "its own number": lambda a, h: a * jnp.arange(a.shape[-1], dtype=a.dtype)[None, :],
    "half its units": lambda a, h: jnp.concatenate([a[:, :5], h[:, 5:]], axis=-1),
    "a product": lambda a, h: a + h @ jnp.eye(h.shape[-1], dtype=h.dtype),
    "a sine": lambda a, h: jnp.sin(a + h),
    "a constant factor, which its tape keeps": lambda a, h: jnp.tanh(a) * 0.5,
    "a bound, of which its tape keeps a truth value": lambda a, h: jnp.clip(a, -1, 1),
    "an infinity": lambda a, h: jnp.tanh(jnp.maximum(a, -jnp.inf)),
    "gates that are filled up in parts": lambda a, h: (
        a
        + jnp.concatenate(
            [jnp.ones((a.shape[0], 5)), jnp.zeros((a.shape[0], a.shape[-1] - 5))], axis=-1
        )
    ),
    "whole numbers": lambda a, h: a + jax.lax.div(jnp.full(a.shape, 7), 2).astype(jnp.float32),
    "a loop": lambda a, h: jax.lax.fori_loop(0, 3, lambda k, x: 0.5 * (x + h), a),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_gates_are_run_by_scans(what):
    cell = own_cell(lambda _, state, z, u: RNNState(REFUSED[what](z + u, state.h)), gates="a")
    with pytest.raises(UnsupportedError):  # and nothing else
        translate(cell, 6, 20)
    assert write_cell(cell, 6, 20) is None
    if what == "a sine":
        assert "lm_run_cell" not in gradient_program(cell)


def test_a_cell_that_says_its_units_differ_is_not_asked():
    assert write_cell(own_cell(elementwise), 6, 20) is not None
    assert write_cell(dataclasses.replace(own_cell(elementwise), pointwise=False), 6, 20) is None


SUMS = {
    "of units": lambda d: jnp.sum(d, axis=0).sum(axis=0) * jnp.ones(20),
    "of sums": lambda d: jnp.broadcast_to(d.sum(axis=0), d.shape).sum(axis=0),
    "of nothing": lambda d: d[0],
}


@pytest.mark.parametrize("what", SUMS)
def test_other_sums_than_over_rows_are_refused(what):
    """As the cotangent of a vector, by hand."""

    def pull_back(tape, d_state):
        delta = d_state.h * tape
        return Pulled((SUMS[what](delta),), RNNState(jnp.zeros_like(delta)), delta, delta)

    cell = dataclasses.replace(CELLS["rnn"], vectors=(Vector("v"),), pull_back=pull_back)
    with pytest.raises(UnsupportedError):
        translate(cell, 6, 20)
    right = dataclasses.replace(cell, pull_back=lambda tape, d: pull_back_right(tape, d))
    assert write_cell(right, 6, 20) is not None


def pull_back_right(tape, d_state):
    delta = d_state.h * tape
    return Pulled((delta.sum(axis=0),), RNNState(jnp.zeros_like(delta)), delta, delta)


@pytest.mark.parametrize("what", ["state", "vector", "z", "z of one gate"])
def test_shapes_that_disagree_are_the_scans_to_refuse(what):
    """Nothing is read past the end of an array."""
    cell, sizes = CELLS["gru"], {"state": (6, 20), "vector": (20,), "z": (9, 6, 60)}
    wrong = {"state": (1, 20), "vector": (1,), "z": (9, 6, 40), "z of one gate": (9, 6, 20)}
    sizes[what.split()[0]] = wrong[what]
    state, vectors = GRUState(jnp.zeros(sizes["state"])), (jnp.zeros(sizes["vector"]),)
    z = jnp.zeros(sizes["z"])
    run = lambda z: recur(cell, None, jnp.zeros((20, 60)), vectors, state, z, None, None)  # noqa: E731
    with contextlib.suppress(TypeError, ValueError):  # what JAX says of it
        assert "lm_run_cell" not in jax.jit(run).lower(z).as_text()


def test_a_vector_over_several_gates_and_two_vectors(monkeypatch):
    """Cotangents of vectors are summed over rows and steps, each at its place."""

    def equations(vectors, state, z, u):
        scale, shift = vectors
        a, b = split_gates((z + u) * scale[None, :], 2)
        c = jnp.tanh(a) + shift[None, :] * state.c
        return LSTMState(c, jnp.tanh(b) * c)

    vectors = (Vector("scale", 2, 0.7), Vector("shift", 1, 0.3))
    cell = own_cell(equations, state=LSTMState, vectors=vectors)
    check_close(*compile_both_ways(cell, monkeypatch, batch=30, hidden=20))


@pytest.fixture
def in_32_bit_mode():
    return write_cell(own_cell(elementwise), 6, 16)


def test_code_is_the_same_in_64_bit_mode(in_32_bit_mode, x64):
    assert write_cell(own_cell(elementwise), 6, 16) == in_32_bit_mode
    for dtype in (jnp.float32, jnp.float64):
        w_h, state = jnp.zeros((16, 32), dtype), RNNState(jnp.zeros((6, 16), dtype))
        found = find_loop(own_cell(elementwise), w_h, (), state, (9, 6))
        assert (found is None) == (dtype == jnp.float64)
    w_h, wide = jnp.zeros((16, 32), jnp.float32), RNNState(jnp.zeros((6, 16)))
    assert find_loop(own_cell(elementwise), w_h, (), wide, (9, 6)) is None


def test_where_types_differ_it_is_a_scan(x64):
    """A text and a state of float64, and weights of float32."""
    cell, z = CELLS["lstm"], jnp.asarray(draw(9, 6, 80))
    w_h = init_params(jax.random.key(0), cell, 1, 20, dtype=jnp.float32).w_h

    def program(dtype):
        run = lambda z: recur(  # noqa: E731
            cell, None, w_h, (), cell.init_state(6, 20, dtype), z, None, None
        )
        with jax.numpy_dtype_promotion("standard"):
            return jax.jit(run).lower(z.astype(dtype)).compile().as_text()

    assert "lm_run_cell" in program(jnp.float32)
    assert "lm_run_cell" not in program(jnp.float64)


def test_another_type_is_refused_in_c(x64):
    w_h, state = jnp.zeros((16, 16), jnp.float32), RNNState(jnp.zeros((6, 16), jnp.float32))
    loop = find_loop(CELLS["rnn"], w_h, (), state, (9, 6))
    h, z = jnp.zeros((6, 16)), jnp.zeros((9, 6, 16))
    with pytest.raises(jax.errors.JaxRuntimeError, match="wanted float32"):
        jax.block_until_ready(call_forward(loop, (), jnp.zeros((16, 16)), (), RNNState(h), z))


def test_code_for_avx2_computes_the_same(monkeypatch):
    """Half as many units to a vector; this processor may have wider ones."""
    flags = ["-march=haswell" if flag == "-march=native" else flag for flag in library.FLAGS]
    monkeypatch.setattr(library, "FLAGS", tuple(flags))
    cell, z = CELLS["gru"], jnp.asarray(draw(9, 30, 3 * 21))
    code = write_cell(cell, 30, 21)
    suffix = library.load_cell(code.text + "/* for AVX2 */")
    params = init_params(jax.random.key(0), cell, 1, 21)
    state = GRUState(jnp.asarray(draw(30, 21)))
    loop = Loop(cell, code, suffix)
    taped = [jnp.zeros((9, 30, 21 * width)) for width in code.widths]
    found = call_forward(loop, taped, params.w_h, params.vectors, state, z)
    by_scan(monkeypatch)
    last, trace = run_forward(cell, params.w_h, params.vectors, state, z, None)
    check_close(found, (last, trace.h, list(trace.tape)))


def test_no_loops_where_the_compiler_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    code = write_cell(CELLS["rnn"], 6, 20)
    assert library.load_cell(code.text + "/* never seen */") is None


def test_cells_have_libraries_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = [write_cell(CELLS[name], 6, 20).text for name in ("rnn", "gru")]
    compiler = library.find_compiler()
    keys = {library.make_key(compiler, code) for code in ["", *codes]}
    assert len(keys) == 3
    assert all(library.find_library(code) is not None for code in codes)
    kept = {path.stem for path in (tmp_path / "recurrent-lm" / "native").iterdir()}
    assert kept == {library.make_key(compiler, code) for code in codes}
