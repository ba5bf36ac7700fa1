"""QR and singular values against NumPy, and that many at once do not lock each other out."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import linalg

SHAPES = [(1, 1), (2, 2), (7, 7), (16, 16), (9, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [linalg.qr, linalg.householder_qr])
def test_qr(factor, shape, x64):
    a = jax.random.normal(jax.random.key(0), shape)
    q, r = factor(a)
    np.testing.assert_allclose(q @ r, a, atol=1e-14)
    np.testing.assert_allclose(q.T @ q, np.eye(shape[1]), atol=1e-14)
    np.testing.assert_array_equal(r, np.triu(r))
    if factor is linalg.qr:
        assert np.all(np.diagonal(r) >= 0)
        expected = np.linalg.qr(a).R
        np.testing.assert_allclose(np.abs(r), np.abs(expected), atol=1e-14)


def test_qr_of_columns_that_squares_would_lose():
    """float32, entries at 1e-30: their squares are 0."""
    a = jax.random.normal(jax.random.key(0), (6, 6)) * 1e-30
    q, r = linalg.householder_qr(a)
    np.testing.assert_allclose(q.T @ q, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(np.abs(np.diagonal(r)) > 0, True)
    zero = linalg.householder_qr(jnp.zeros((3, 3)))
    assert np.all(np.isfinite(zero[0]))
    np.testing.assert_array_equal(zero[1], 0)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 31])
@pytest.mark.parametrize("values", [linalg.singular_values, linalg.jacobi_singular_values])
def test_singular_values(values, size, x64):
    a = jax.random.normal(jax.random.key(size), (size, size))
    np.testing.assert_allclose(values(a), np.linalg.svd(a, compute_uv=False), rtol=1e-11)
    rank_one = a[:, :1] @ a[:1]
    expected = np.linalg.norm(a[:, 0]) * np.linalg.norm(a[0])
    np.testing.assert_allclose(values(rank_one)[0], expected, rtol=1e-12)
    np.testing.assert_allclose(values(jnp.zeros((size, size))), 0)
    q = linalg.orthogonal(jax.random.key(1), size, jnp.float64)
    np.testing.assert_allclose(values(3 * q), 3, rtol=1e-13)


def test_small_singular_values_of_a_graded_matrix(x64):
    """Columns over 60 orders of magnitude: an SVD in float64 keeps sixteen of them."""
    q = linalg.orthogonal(jax.random.key(0), 6, jnp.float64)
    scales = jnp.asarray([1e30, 1e20, 1.0, 1e-10, 1e-20, 1e-30])
    found = linalg.jacobi_singular_values(q * scales[None])
    np.testing.assert_allclose(found, scales, rtol=1e-12)


def test_small_columns_that_are_nearly_parallel():
    """float32: squares of the small columns would be 0, and they would never be told apart."""
    small = np.asarray([[1.0, 1.0], [0.1, 0.2], [0.3, -0.1]]) * 1e-12
    a = np.zeros((4, 4))
    a[0, 0] = a[1, 1] = 1
    a[1:, 2:] = small
    a[1, 2:] = 0
    found = linalg.jacobi_singular_values(jnp.asarray(a, jnp.float32))
    expected = np.linalg.svd(a, compute_uv=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3)])
def test_spectral_norm(shape, x64):
    a = jax.random.normal(jax.random.key(2), shape)
    np.testing.assert_allclose(linalg.spectral_norm(a), np.linalg.norm(a, 2), rtol=1e-12)


def test_orthogonal_is_uniform_over_rotations(x64):
    """Haar measure: entries have mean 0 and variance 1 / n, and both determinants occur."""
    keys = jax.random.split(jax.random.key(0), 4000)
    q = jax.vmap(lambda key: linalg.orthogonal(key, 4, jnp.float64))(keys)
    np.testing.assert_allclose(q.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose((q**2).mean(axis=0), 0.25, atol=0.02)
    np.testing.assert_allclose((np.linalg.det(q) > 0).mean(), 0.5, atol=0.05)


def test_many_at_once_do_not_wait_for_each_other():
    """LAPACK's QR in JAX 0.10 hangs here within seconds on two cores."""
    code = (
        "import jax\n"
        "from lm.linalg import orthogonal, singular_values\n"
        "def four(key):\n"
        "    keys = jax.random.split(key, 4)\n"
        "    return [singular_values(orthogonal(k, 24)) for k in keys]\n"
        "many = jax.jit(jax.vmap(four))\n"
        "for n in range(40):\n"
        "    jax.block_until_ready(many(jax.random.split(jax.random.key(n), 16)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
