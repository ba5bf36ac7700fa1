"""Dead units: a layer filled up with them is the same layer, to the last gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_names import EVERY_CELL

from lm import alignment, model
from lm.alignment import align_layer, aligned_width, narrow, widen
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.config import ModelConfig, RegularizeConfig
from lm.data.batches import Batch
from lm.recurrence import unroll
from lm.regularize import NO_MASKS, draw_masks
from lm.train import batch_nats

T, B, D, H = 5, 3, 6, 10
V = 11


@pytest.fixture
def eights(monkeypatch):
    """As on a backend that wants multiples of 8."""
    return lambda: monkeypatch.setitem(alignment.MULTIPLE, jax.default_backend(), 8)


def test_widths(eights):
    assert [aligned_width(n) for n in (1, 650)] == [1, 650]
    eights()
    assert [aligned_width(n) for n in (1, 8, 9, 650)] == [8, 8, 16, 656]


def test_nothing_is_copied_where_nothing_is_missing():
    params = init_params(jax.random.key(0), CELLS["lstm"], D, H)
    aligned = align_layer(CELLS["lstm"], params)
    same = jax.tree.map(lambda a, b: a is b, params, aligned)
    assert all(jax.tree.leaves(same))
    x = jnp.ones((2, 3))
    assert widen(x, 3) is x
    np.testing.assert_array_equal(narrow(widen(x, 5), 3), x)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_a_layer_with_dead_units_is_the_same_layer(name, eights, x64):
    cell = CELLS[name]
    rng = np.random.default_rng(1)
    params = init_params(jax.random.key(1), cell, D, H, dtype=jnp.float64)
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape), params)
    x, weights = rng.normal(size=(T, B, D)), rng.normal(size=(T, B, H))
    state = cell.state(*(0.3 * rng.normal(size=(B, H)) for _ in cell.state._fields))
    mask = rng.random((T, B)) < 0.8
    probe = jax.tree.map(lambda a: np.zeros((T, *a.shape)), state)
    drop = None if cell.diagonal else np.where(rng.random((B, H)) < 0.5, 2.0, 0.0)

    def found():
        def loss(params, state, x, probe, gauge):
            last, h = unroll(cell, params, state, x, mask, probe, gauge, drop)
            total = jnp.sum(h * weights) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))
            return total, (last, h)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True))(
            params, state, x, probe, np.zeros(T)
        )

    plain = found()
    eights()
    assert cell.pointwise == (align_layer(cell, params).w_h.shape[0] == 16)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), plain, found()
    )


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_dead_units_is_the_same_model(tied, eights, x64):
    sizes = {"embedding_size": H if tied else D, "hidden_size": H, "layers": 2}
    config = ModelConfig(cell="lstm", tied=tied, **sizes)
    every = RegularizeConfig(
        dropout_words=0.3,
        dropout_input=0.3,
        dropout_hidden=0.3,
        dropout_output=0.3,
        dropout_state=0.3,
        weight_drop=0.3,
    )
    params = model.init(jax.random.key(0), config, V, dtype=jnp.float64)
    carry = model.init_carry(config, B, jnp.float64)
    tokens = np.random.default_rng(1).integers(0, V, (T + 1, B)).astype(np.int32)
    batch = Batch(tokens[:-1], tokens[1:], None, np.asarray(False))
    masks = jax.tree.map(
        lambda m: m.astype(jnp.float64), draw_masks(jax.random.key(2), every, config, V, T, B)
    )

    def found(masks):
        def loss(params, carry):
            return batch_nats(config, params, carry, batch, masks=masks)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, carry)

    plain = found(masks), found(NO_MASKS)
    eights()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
        plain,
        (found(masks), found(NO_MASKS)),
    )
