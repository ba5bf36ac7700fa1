"""Cross-entropy: the oracle, its gradient, and the memory that it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lm import loss

N, H, V = 23, 6, 11


def problem(dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 5)
    h = jax.random.normal(keys[0], (N, H), dtype)
    w = jax.random.normal(keys[1], (H, V), dtype)
    b = jax.random.normal(keys[2], (V,), dtype)
    targets = jax.random.randint(keys[3], (N,), 0, V, jnp.int32)
    weights = jax.random.uniform(keys[4], (N,), dtype).at[3:6].set(0)
    return h, w, b, targets, weights


def naive(h, w, b, targets, weights):
    scores = jax.nn.log_softmax(h @ w + b[None], axis=-1)
    return -jnp.sum(jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0] * weights)


@pytest.mark.parametrize("limit", [8, 8 * V * 4, 2**30])
def test_nats_equal_the_oracle_for_any_chunk(limit, x64, monkeypatch):
    monkeypatch.setattr(loss.chunk_rows, "__defaults__", (8, limit))
    h, w, b, targets, _ = problem()
    expected = oracles.cross_entropy(np.array(h), np.array(w), np.array(b), np.array(targets))
    np.testing.assert_allclose(loss.token_nats(h, w, b, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("limit", [8, 8 * V * 4, 2**30])
def test_gradient_equals_autodiff_for_any_chunk(limit, x64, monkeypatch):
    monkeypatch.setattr(loss.chunk_rows, "__defaults__", (8, limit))
    h, w, b, targets, weights = problem()

    def grad(f):
        def tripled(h, w, b, weights):
            return 3 * f(h, w, b, targets, weights)

        return jax.value_and_grad(tripled, (0, 1, 2, 3))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13),
        grad(loss.weighted_nats)(h, w, b, weights),
        grad(naive)(h, w, b, weights),
    )


def test_scores_of_a_thousand_do_not_overflow():
    h, w, b, targets, weights = problem(jnp.float32)
    value, grad = jax.value_and_grad(loss.weighted_nats)(1e3 * h, w, b, targets, weights)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("differentiate", [False, True])
def test_memory_stays_under_the_stated_chunk(differentiate):
    """N x V = 4,096 x 50,000 would be 819 MB of logits; the compiler plans a few chunks."""
    rows, words, hidden = 4096, 50_000, 64
    shapes = [
        jax.ShapeDtypeStruct(s, t)
        for s, t in [
            ((rows, hidden), jnp.float32),
            ((hidden, words), jnp.float32),
            ((words,), jnp.float32),
            ((rows,), jnp.int32),
            ((rows,), jnp.float32),
        ]
    ]
    f = loss.weighted_nats
    f = jax.jit(jax.grad(f, argnums=(0, 1, 2)) if differentiate else f)
    planned = f.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    weights = hidden * words * 4
    assert planned < 3 * loss.LOGITS_BYTES + 4 * weights
    assert planned < rows * words * 4 / 2


@pytest.mark.parametrize(("rows", "words"), [(1, 1), (700, 10_000), (4096, 267_000), (5, 10**9)])
def test_chunks_are_even_and_within_the_limit(rows, words):
    chunk = loss.chunk_rows(rows, words)
    assert chunk == 1 or chunk * words * 4 <= loss.LOGITS_BYTES
    assert (-(-rows // chunk)) * chunk - rows < -(-rows // chunk)


def test_other_backends_take_larger_chunks(monkeypatch):
    rows, words = 5600, 10_000
    assert loss.chunk_rows(rows, words) * words * 4 <= loss.LOGITS_BYTES
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert loss.chunk_rows(rows, words) == rows
    assert loss.chunk_rows(10 * rows, words) * words * 4 <= loss.DEVICE_LOGITS_BYTES
