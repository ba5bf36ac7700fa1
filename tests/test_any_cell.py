"""Cells of every origin read as one record: the same steps from the same weights, or one line."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from foreign_cells import TWINS, B, D, H, T, random_weights, twin

from lm.cells import CELLS
from lm.gradients.any_cell import as_recurrence
from lm.recurrence import unroll, unroll_step

X = jnp.ones((T, B, D))
W = {"x": jnp.ones((D, H)), "h": jnp.ones((H, H))}
ZERO = jnp.zeros((B, H))
ONE_EACH = ("linen LSTMCell", "nnx GRUCell", "Haiku LSTM", "Equinox LSTMCell")
run = jax.jit(unroll_step, static_argnums=0)
run_ours = jax.jit(unroll, static_argnums=0)


@pytest.mark.parametrize("name", TWINS)
def test_copied_weights_give_the_same_outputs(name):
    cell, params, foreign, foreign_params, x = twin(name, jnp.float32)
    theirs, state = as_recurrence(foreign, foreign_params, x=x)
    assert theirs.fields == cell.state._fields
    assert theirs.output == theirs.fields.index("h")
    last, h = run_ours(cell, params, cell.init_state(B, H), x)
    their_last, their_h = run(theirs.step, theirs.params, state, x)
    np.testing.assert_allclose(their_h, h, rtol=1e-6, atol=1e-6)
    for field in theirs.fields:
        np.testing.assert_allclose(their_last[field], getattr(last, field), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_our_cells_are_read_as_they_are(name):
    params, x = random_weights(CELLS[name], jnp.float32)
    found, state = as_recurrence(CELLS[name], params, x=x)
    assert found.fields == tuple(sorted(CELLS[name].state._fields))
    assert found.output == found.fields.index("h")
    last, h_t = found.step(found.params, state, x[0])
    assert h_t is last["h"]


@pytest.mark.parametrize(
    "name", ["linen LSTMCell", "nnx GRUCell", "Haiku LSTM", "Equinox LSTMCell"]
)
def test_states_go_in_under_their_own_names(name):
    """A state in the library's own order comes out as c and h."""
    cell, _, foreign, params, x = twin(name, jnp.float32)
    given = {"c": jnp.full((B, H), 2.0), "h": jnp.full((B, H), 3.0)}
    fields = cell.state._fields
    order = ("h", "c") if name.startswith("Equinox") else fields
    state = tuple(given[field] for field in order) if len(fields) == 2 else given["h"]
    if name.startswith("Haiku"):
        hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
        state = hk.LSTMState(hidden=given["h"], cell=given["c"])
    _, start = as_recurrence(foreign, params, x=x, state=state)
    assert start.keys() == set(fields)
    for field in fields:
        np.testing.assert_array_equal(start[field], given[field])


def linear_step(params, state, x_t):
    h = x_t @ params["x"] + state @ params["h"]
    return h, h


def test_a_bare_step():
    found, start = as_recurrence(linear_step, W, x=X, state=ZERO)
    assert (found.fields, found.output) == (("h",), 0)
    assert found.init_state(9)["h"].shape == (9, H)
    new, h_t = found.step(found.params, start, X[0])
    np.testing.assert_array_equal(new["h"], h_t)


class Pair(NamedTuple):
    slow: jax.Array
    fast: jax.Array


@pytest.mark.parametrize("wrap", [lambda step: step, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize(
    ("output", "index"), [("fast", 0), ("slow", 1), ("none", None)]
)  # in tree order: fast, slow
def test_the_leaf_that_is_the_output(output, index, wrap):
    def step(params, state, x_t):
        fast = jnp.tanh(x_t @ params["x"] + state.slow @ params["h"])
        slow = state.slow * 0.5 + fast
        return Pair(slow, fast), {"fast": fast, "slow": slow, "none": fast * slow}[output]

    found, _ = as_recurrence(wrap(step), W, x=X, state=Pair(ZERO, ZERO))
    assert found.fields == ("fast", "slow")
    assert found.output == index


def test_names_of_nested_states():
    def step(params, state, x_t):
        return state, state["a"][0]

    state = {"a": (ZERO, ZERO), "b": Pair(ZERO, ZERO)}
    found, start = as_recurrence(step, (), x=X, state=state)
    assert found.fields == ("a.0", "a.1", "b.fast", "b.slow")
    assert list(found.init_state(B)) == list(start)


def test_equal_cells_have_equal_steps():
    """So that what is compiled for one serves the other."""
    for name in ("linen LSTMCell", "nnx GRUCell", "Equinox LSTMCell"):
        _, _, cell, params, x = twin(name, jnp.float32)
        _, _, again, params_again, _ = twin(name, jnp.float32)
        first = as_recurrence(cell, params, x=x)[0].step
        second = as_recurrence(again, params_again, x=x)[0].step
        assert first == second
        assert hash(first) == hash(second)
    _, _, build, params, x = twin("Haiku LSTM", jnp.float32)
    first, second = (as_recurrence(build, params, x=x)[0].step for _ in range(2))
    assert first == second


class OwnLSTM(nn.RNNCellBase):
    """A cell that is called after an LSTM and has another state."""

    @nn.compact
    def __call__(self, carry, x_t):
        h = jnp.tanh(nn.Dense(H)(x_t)) + carry[1]
        return (h, carry[0]), h

    num_feature_axes = 1


def test_tuples_of_unknown_cells_are_numbered():
    params = {"Dense_0": {"kernel": W["x"], "bias": jnp.ones(H)}}
    found, _ = as_recurrence(OwnLSTM(), params, x=X, state=(ZERO, ZERO))
    assert (found.fields, found.output) == (("0", "1"), 0)
    refuse("state is missing", cell=OwnLSTM(), params=params)


class Unhashable:
    __hash__ = None

    def __call__(self, params, state, x_t):
        return linear_step(params, state, x_t)


def test_a_step_without_a_hash():
    found, _ = as_recurrence(Unhashable(), W, x=X, state=ZERO)
    hash(found.step)


def drawn(shapes):
    """Random arrays of the shapes that a library's init would return."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), shapes)


def test_haiku_gru_resets_before_the_product():
    """Ours resets after it, as cuDNN does: no weights make one the other, so a step says it."""
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    core = hk.transform(lambda x_t, state: hk.GRU(H)(x_t, state))
    params, x = drawn(jax.eval_shape(core.init, jax.random.key(0), X[0], ZERO)), X

    def step(p, h, x_t):
        w_x, w_h, b = p["gru"]["w_i"], p["gru"]["w_h"], p["gru"]["b"]
        z_x = x_t @ w_x + b[None, :]
        zr = jax.nn.sigmoid(z_x[:, : 2 * H] + h @ w_h[:, : 2 * H])
        z, r = zr[:, :H], zr[:, H:]
        h = (1 - z) * h + z * jnp.tanh(z_x[:, 2 * H :] + (r * h) @ w_h[:, 2 * H :])
        return h, h

    ours, _ = as_recurrence(step, params, x=x, state=ZERO)
    _, h = run(ours.step, ours.params, {"h": ZERO + 0.3}, x)
    cells = [(lambda: hk.GRU(H), None), (core, ZERO), (hk.without_apply_rng(core), ZERO)]
    for cell, state in cells:
        theirs, _ = as_recurrence(cell, params, x=x, state=state)
        _, their_h = run(theirs.step, theirs.params, {"h": ZERO + 0.3}, x)
        np.testing.assert_allclose(their_h, h, rtol=1e-6, atol=1e-6)


# ---- what is refused, in one line


def refuse(*words, cell, params=None, x=X, state=None):
    with pytest.raises(ValueError) as error:
        as_recurrence(cell, params, x=x, state=state)
    said = str(error.value)
    assert "\n" not in said
    for word in words:
        assert word in said, said


@pytest.mark.parametrize("cell", [3, "lstm", None, [linear_step], nn.LSTMCell])
def test_other_objects_are_refused(cell):
    refuse("wanted a Cell of lm.cells", "flax.linen", "Equinox", cell=cell)


def test_missing_parameters_are_asked_for():
    refuse("params are missing", "CellParams", cell=CELLS["lstm"])
    refuse("params are missing", "linear_step", cell=linear_step, state=ZERO)
    refuse("params are missing", "LSTMCell", "init", cell=nn.LSTMCell(H))
    refuse("wanted CellParams", cell=CELLS["lstm"], params=W)


def test_a_missing_state_is_asked_for():
    refuse("state is missing", "linear_step", cell=linear_step, params=W)


@pytest.mark.parametrize("name", TWINS)
def test_inputs_of_another_size_are_refused(name):
    _, _, cell, params, x = twin(name, jnp.float32)
    refuse("does not run on x_t float32[3, 4]", cell=cell, params=params, x=x[:, :, :4])


def test_states_that_do_not_fit_are_refused():
    refuse("'h'", "(2, 6)", "B = 3", cell=linear_step, params=W, state=ZERO[:2])
    counter = {"h": ZERO, "count": jnp.zeros((B, 1), jnp.int32)}
    refuse("'count'", "int32", "floating", cell=linear_step, params=W, state=counter)
    refuse("does not run", "LSTMCell", cell=nn.LSTMCell(H), params={"params": W}, state=ZERO)
    refuse("no leaves", cell=linear_step, params=W, state=())
    refuse("wanted [T, B, ...]", cell=linear_step, params=W, state=ZERO, x=ZERO[0])


def test_parameters_that_are_no_arrays_are_refused():
    refuse("'rate'", "str", cell=linear_step, params={**W, "rate": "fast"}, state=ZERO)
    refuse("'k'", "int32", cell=linear_step, params={**W, "k": jnp.arange(3)}, state=ZERO)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[..., :3], ("'c'", "float32[3, 3]", "float32[3, 6]")),
        (lambda s: s.astype(jnp.bfloat16), ("'c'", "bfloat16[3, 6]", "float32[3, 6]")),
        (lambda s: (s, s), ("returns the state", "as it came in")),
    ],
)
def test_steps_that_change_the_state_are_refused(change, words):
    def step(params, state, x_t):
        return {"c": change(state["c"]), "h": state["h"]}, state["h"]

    refuse(*words, cell=step, params=(), state={"c": ZERO, "h": ZERO})


def test_outputs_that_are_no_array_of_rows_are_refused():
    refuse("wanted one array", cell=lambda p, s, x: (s, (s, s)), params=(), state=ZERO)
    refuse("wanted one array", cell=lambda p, s, x: (s, s.sum()), params=(), state=ZERO)
    refuse("does not run", cell=lambda p, s, x: s, params=(), state=ZERO)


class DropoutCell(nn.RNNCellBase):
    @nn.compact
    def __call__(self, carry, x_t):
        h = nn.Dropout(0.5, deterministic=False)(nn.Dense(H)(x_t)) + carry
        return h, h

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((input_shape[0], H))

    num_feature_axes = 1


class NormCell(DropoutCell):
    @nn.compact
    def __call__(self, carry, x_t):
        h = nn.BatchNorm(use_running_average=False)(nn.Dense(H)(x_t)) + carry
        return h, h


def test_linen_cells_that_are_no_functions_are_refused():
    keys = dict.fromkeys(("params", "dropout"), jax.random.key(0))
    variables = drawn(jax.eval_shape(DropoutCell().init, keys, ZERO, X[0]))
    refuse("does not run", "dropout", cell=DropoutCell(), params=variables)
    variables = drawn(jax.eval_shape(NormCell().init, keys, ZERO, X[0]))
    refuse("batch_stats", "without variables that change", cell=NormCell(), params=variables)


class NnxDropoutCell(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(D, H, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry, x_t):
        h = self.dropout(self.dense(x_t)) + carry
        return h, h


def test_nnx_cells_that_are_no_functions_are_refused():
    refuse("RngKey", "dropout", cell=NnxDropoutCell(nnx.Rngs(0)), state=ZERO)
    cell = nnx.SimpleCell(D, H, rngs=nnx.Rngs(0))
    refuse("do not fit", cell=cell, params={"dense_i": W["x"]})


def test_haiku_transforms_that_are_no_steps_are_refused():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    kept = hk.transform_with_state(lambda x_t, state: hk.LSTM(H)(x_t, state))
    refuse("transform_with_state", cell=kept, params=W)
    noisy = hk.transform(lambda x_t, s: (hk.dropout(hk.next_rng_key(), 0.5, s), s))
    refuse("does not run", "random numbers", cell=noisy, params={}, state=ZERO)
    plain = hk.transform(lambda x_t, s: hk.GRU(H)(x_t, s))
    refuse("params are missing", cell=plain, state=ZERO)
    refuse("state is missing", cell=plain, params={})
    refuse("params are missing", "Haiku core", cell=lambda: hk.GRU(H))
    refuse("returns int", "RNNCore", cell=lambda: 3, params={})


def test_equinox_modules_that_are_no_steps_are_refused():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")

    class Own(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x_t, state):
            return self.dropout(self.linear(x_t)) + state

    class Two(eqx.Module):
        def __call__(self, x_t, state):
            return state

    dropped = Own(eqx.nn.Linear(D, H, key=jax.random.key(0)), eqx.nn.Dropout(0.5))
    refuse("state is missing", cell=dropped)
    refuse("does not run", "key", cell=dropped, state=ZERO)
    refuse("output", "field h", cell=Two(), state=(ZERO, ZERO))


def test_no_library_is_imported_for_a_step():
    code = (
        "import sys, jax.numpy as jnp\n"
        "from lm.gradients.any_cell import as_recurrence\n"
        "as_recurrence(lambda p, s, x: (s + x, s + x), (), x=jnp.ones((2, 1, 3)),"
        " state=jnp.ones((1, 3)))\n"
        "assert not {'flax', 'haiku', 'equinox'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_function_without_arguments_needs_haiku(monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)
    refuse("dm-haiku is not installed", cell=lambda: 3, params={})


@pytest.mark.parametrize("name", ONE_EACH)
def test_states_have_the_dtype_of_the_parameters(name, x64):
    """Haiku starts from the default float, float64 here, and Flax from param_dtype."""
    for dtype in (jnp.float32, jnp.float64):
        _, _, cell, params, x = twin(name, dtype)
        _, start = as_recurrence(cell, params, x=x)
        assert {leaf.dtype for leaf in start.values()} == {jnp.dtype(dtype)}
