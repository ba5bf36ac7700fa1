"""Embeddings: rows by word, the first layer's products by way of a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import embedding, model
from lm.config import ModelConfig
from lm.products import affine, column_sums, dot, dot_over_words
from lm.regularize import NO_MASKS

T, B, V, D, H = 12, 5, 7, 6, 4


@pytest.fixture
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (T, B)), jnp.int32)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape))


def test_by_way_of_a_table_values_and_gradients_are_those_of_each_token(tokens, x64):
    e, w, b, weights = draw(V, D), draw(D, 4 * H), draw(4 * H), draw(T, B, 4 * H)

    def by_token(e, w, b):
        return jnp.vdot(jnp.take(e, tokens, axis=0) @ w + b[None, None, :], weights)

    def by_table(e, w, b):
        return jnp.vdot(embedding.project_tokens(e, w, b, tokens), weights)

    arguments = e, w, b
    found, expected = (
        jax.jit(jax.value_and_grad(by, argnums=(0, 1, 2)))(*arguments)
        for by in (by_table, by_token)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_table_is_chosen_where_there_are_far_fewer_words_than_tokens():
    assert embedding.is_table_cheaper(100, 8192)
    assert not embedding.is_table_cheaper(10_000, 700)
    assert not embedding.is_table_cheaper(600, 700)
    assert embedding.is_table_cheaper(500, 700)


@pytest.mark.parametrize("cell", ["lstm", "mingru"])
def test_a_model_is_the_same_with_and_without_the_table(monkeypatch, tokens, cell, x64):
    config = ModelConfig(cell=cell, layers=2, hidden_size=H, embedding_size=D)
    params = model.init(jax.random.key(0), config, V, dtype=jnp.float64)
    carry = model.init_carry(config, B, jnp.float64)
    words = (np.random.default_rng(2).random(V) > 0.3).astype(np.float64)
    found = []
    for cheaper in (True, False):
        monkeypatch.setattr(model, "is_table_cheaper", lambda *_, cheaper=cheaper: cheaper)

        def total(params):
            masks = NO_MASKS._replace(words=words)
            return jnp.sum(model.apply(config, params, carry, tokens, masks=masks)[1] ** 2)

        found.append(jax.jit(jax.value_and_grad(total))(params))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_token_with_a_mask_of_its_own_is_not_looked_up_in_a_table(tokens):
    config = ModelConfig(hidden_size=H, embedding_size=D)
    params = model.init(jax.random.key(0), config, V)
    assert embedding.is_table_cheaper(V, 10 * tokens.size)
    many = jnp.tile(tokens, (10, 1))
    ones = jnp.ones((10 * T, B, D)).at[0, 0].set(0)
    plain = model.first_input_products(params.embedding, params.layers[0], many, NO_MASKS)
    masked = model.first_input_products(
        params.embedding, params.layers[0], many, NO_MASKS._replace(input=ones)
    )
    np.testing.assert_allclose(masked[0, 0], params.layers[0].b, rtol=1e-6)
    np.testing.assert_allclose(masked[1:], plain[1:], rtol=1e-5, atol=1e-6)


def test_affine_gradients_are_those_of_autodiff(x64):
    x, w, b, weights = draw(T, D), draw(D, H), draw(H), draw(T, H)
    found = jax.grad(lambda *a: jnp.vdot(affine(*a), weights), argnums=(0, 1, 2))(x, w, b)
    plain = jax.grad(lambda x, w, b: jnp.vdot(x @ w + b[None, :], weights), argnums=(0, 1, 2))
    for a, b in zip(found, plain(x, w, b), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(column_sums(x), np.asarray(x).sum(axis=0), rtol=1e-12)


def test_a_rounded_product_rounds_its_operands_alone():
    a, b = draw(64, 300).astype(jnp.float32), draw(300, 16).astype(jnp.float32)
    found = dot(a, b, "bfloat16")
    assert found.dtype == jnp.float32

    def rounded(x):
        return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    np.testing.assert_allclose(found, rounded(a) @ rounded(b), rtol=1e-4, atol=1e-4)
    assert np.abs(found - np.asarray(a, np.float64) @ b).max() > 1e-2


def test_bfloat16_keeps_states_gates_and_gradients_in_float32(tokens):
    config = ModelConfig(layers=2, hidden_size=32, embedding_size=16, precision="bfloat16")
    params = model.init(jax.random.key(0), config, V)
    carry = model.init_carry(config, B)

    def total(params, config):
        last, h = model.apply(config, params, carry, tokens)
        return jnp.sum(h**2), (last, h)

    def gradient(config):
        return jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(params, config)

    grads, outputs = gradient(config)
    exact, _ = gradient(ModelConfig(layers=2, hidden_size=32, embedding_size=16))
    grads, exact = jax.tree.map(np.asarray, (grads, exact))
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, outputs))} == {jnp.dtype("float32")}
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        assert 0 < np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-9) < 0.02 or not b.any()


@pytest.mark.parametrize("words", [5, 50])
def test_a_product_over_words_is_the_product_either_way_round(words, x64):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, words)), rng.normal(size=(6, words))
    product = jax.jit(dot_over_words)
    np.testing.assert_allclose(product(a, b), a @ b.T, rtol=1e-12)
    # 50 words: compiled as b @ a.T. Turned back, the trick would be lost without a sign.
    turned = "f64[6,20]" in product.lower(a, b).compile().as_text()
    assert turned == (words == 50)
