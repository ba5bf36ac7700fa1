"""The softmax in C: what XLA's is, for logits of any size and kind."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packed_product import _loaded, draw, pytestmark  # noqa: F401 - skipped where that is

from lm.loss import token_nats, weighted_nats
from lm.native.softmax import (
    log_normalizer,
    log_normalizer_plain,
    softmax_gradient,
    softmax_gradient_plain,
)

IN_C = 'custom_call_target="lm_softmax_gradient"'


def numbers(rows, words, scale=3.0):
    logits, b = scale * draw(rows, words), draw(words, seed=1)
    weights = np.abs(draw(rows, seed=2))
    targets = np.random.default_rng(3).integers(0, words, rows, np.int32)
    return logits, b, weights, targets


def check(rows, words, scale=3.0):
    given = numbers(rows, words, scale)
    gradient, log_z = jax.jit(softmax_gradient)(*given)
    with jax.enable_x64(True):
        wide = [np.asarray(a, np.float64) for a in given[:3]]
        exact, exact_z = jax.jit(softmax_gradient_plain)(*wide, given[3])
    # float32's own: half an ulp of a score becomes a relative error of its exponential.
    size = np.abs(given[0] + given[1]).max() + 1
    np.testing.assert_allclose(log_z, exact_z, rtol=1e-6, atol=2e-7 * size)
    np.testing.assert_allclose(gradient, exact, atol=3e-7 * size * given[2].max())
    np.testing.assert_array_equal(log_z, jax.jit(log_normalizer)(*given[:2]))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90))
def test_any_shape_is_normalised(rows, words):
    check(rows, words)


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_large_and_small_logits(scale):
    check(50, 2000, scale)


def test_exponentials_have_the_precision_of_float32():
    """One logit against another, over all that an exponential can be."""
    x = np.linspace(-87, 0, 4001, dtype=np.float32)
    logits = np.stack([np.zeros_like(x), x], axis=1)
    ones, none = np.ones(len(x), np.float32), np.zeros(2, np.float32)
    gradient, _ = softmax_gradient(logits, none, ones, np.zeros(len(x), np.int32))
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(gradient[:, 1], e / (1 + e), rtol=4e-7)


def test_a_word_that_is_out_of_reach_gets_nothing():
    logits = np.array([[0.0, -1e4, -np.inf, 0.0]], np.float32)
    one, none = np.ones(1, np.float32), np.zeros(4, np.float32)
    gradient, log_z = softmax_gradient(logits, none, one, np.zeros(1, np.int32))
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(log_z, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "log_z"), [(np.nan, np.nan), (np.inf, np.inf)], ids=["NaN", "infinite"]
)
def test_what_is_not_finite_is_told_in_its_own_row(bad, log_z):
    logits, b, weights, targets = numbers(6, 37)
    logits[4, 36] = bad
    gradient, found = softmax_gradient(logits, b, weights, targets)
    np.testing.assert_array_equal(found[4], np.float32(log_z))
    assert np.isnan(gradient[4]).any()
    assert np.isfinite(np.delete(gradient, 4, axis=0)).all()
    assert np.isfinite(np.delete(found, 4)).all()


@pytest.mark.parametrize("other", [np.nan, -np.inf, np.inf], ids=str)
def test_rows_without_a_finite_logit(other):
    logits = np.full((2, 20), -np.inf, np.float32)
    logits[1] = np.nan
    logits[:, 7] = other
    found = log_normalizer(logits, np.zeros(20, np.float32))
    np.testing.assert_array_equal(found, log_normalizer_plain(logits, jnp.zeros(20)))


def test_shapes_that_disagree_are_refused():
    logits, b, weights, targets = numbers(6, 37)
    for arrays in ((logits, b[:36], weights, targets), (logits, b, weights[:5], targets)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="shapes of a softmax disagree"):
            jax.block_until_ready(softmax_gradient(*arrays))


def test_a_row_does_not_depend_on_the_others():
    logits, b, weights, targets = numbers(300, 1000)
    together = softmax_gradient(logits, b, weights, targets)
    for rows in (slice(0, 1), slice(100, 150)):
        alone = softmax_gradient(logits[rows], b, weights[rows], targets[rows])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other[rows])


def test_the_loss_has_its_softmax_in_c_and_its_gradient_in_the_logits_place():
    h, w = jnp.asarray(draw(30, 8)), jnp.asarray(draw(8, 100, seed=1))
    b, targets, weights = jnp.zeros(100), jnp.zeros(30, jnp.int32), jnp.ones(30)
    gradient = jax.jit(jax.grad(weighted_nats, (0, 1, 2))).lower(h, w, b, targets, weights)
    text = gradient.compile().as_text()
    (called,) = (line for line in text.splitlines() if IN_C in line)
    assert "output_to_operand_aliasing={{0}: (0, {})}" in called
    assert not re.search(r"= f32\[30,100\]\S* copy\(", text)
    nats = jax.jit(token_nats).lower(h, w, b, targets).compile().as_text()
    assert 'custom_call_target="lm_log_normalizer"' in nats


def test_several_at_once_are_xlas():
    given = [np.stack([a, a]) for a in numbers(7, 30)]
    program = jax.jit(jax.vmap(softmax_gradient)).lower(*given).compile()
    assert "lm_softmax" not in program.as_text()
    one = softmax_gradient(*(a[0] for a in given))
    for several, single in zip(program(*given), one, strict=True):
        np.testing.assert_allclose(several[1], single, rtol=1e-5, atol=1e-6)
    shared = jax.vmap(log_normalizer, (0, None))(given[0], given[1][0])
    np.testing.assert_allclose(shared[1], one[1], rtol=1e-6)


def test_the_derivative_is_that_of_xlas():
    logits, b, weights, targets = numbers(7, 30)
    along = draw(7, 30, seed=5)

    def forward(function):
        return jax.jvp(lambda logits: function(logits, b, weights, targets), (logits,), (along,))

    for one, other in zip(
        jax.tree.leaves(forward(softmax_gradient)),
        jax.tree.leaves(forward(softmax_gradient_plain)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    d_log_z = jax.grad(lambda logits: jnp.sum(log_normalizer(logits, b)))(jnp.asarray(logits))
    plain = jax.grad(lambda logits: jnp.sum(log_normalizer_plain(logits, b)))(jnp.asarray(logits))
    np.testing.assert_allclose(d_log_z, plain, rtol=1e-6)
