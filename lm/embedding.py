"""Embeddings, and what the first layer makes of them.

    e_t = E[w_t]        z_t = e_t W_x + b = (E W_x + b)[w_t]

A token's input product depends on the token alone. Where a batch has many more tokens than the
vocabulary has words (characters, mostly), one product for each word and a look-up take the place
of a product for each token; backward, the cotangents of a word's places are summed first, and
two products of V rows take the place of two of T x B. The numbers are the same to rounding.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.products import TRANSPOSED_LEFT, affine

ONE_HOT_WORDS = 512  # the largest vocabulary over which sums are products with one-hot rows
ONE_HOT_BYTES = 16 * 2**20  # most memory of such rows


def project_tokens(
    embedding: jax.Array, w_x: jax.Array, b: jax.Array, tokens: jax.Array, dtype: Any = None
) -> jax.Array:
    """z = E[w] W_x + b by way of a table of all words. Tokens [T, B] -> [T, B, K]."""
    return take_rows(affine(embedding, w_x, b, dtype), tokens)


def is_table_cheaper(vocabulary: int, tokens: int, size: int) -> bool:
    """Whether `project_tokens` needs fewer multiplications than a product for each token.

    There and back, over K: 3 V D for the table and N V to sum the cotangents, against 3 N D.

    Args:
      tokens: N = T x B.
      size: D, of the embeddings.
    """
    return vocabulary <= ONE_HOT_WORDS and vocabulary * (3 * size + tokens) < 3 * tokens * size


@partial(jax.custom_vjp)
def take_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table[tokens]: [V, K] and int [T, B], each in [0, V) -> [T, B, K]."""
    return jnp.take(table, tokens, axis=0)


def _take_forward(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, Any]:
    return take_rows(table, tokens), (tokens, jnp.empty((table.shape[0], 0)))


def _take_backward(residuals: Any, d: jax.Array) -> tuple[jax.Array, None]:
    tokens, like = residuals
    return sum_by_token(d.reshape(-1, d.shape[-1]), tokens.reshape(-1), like.shape[0]), None


take_rows.defvjp(_take_forward, _take_backward)


def sum_by_token(rows: jax.Array, tokens: jax.Array, vocabulary: int) -> jax.Array:
    """The sum of the rows of each token. [N, K] and int [N] -> [V, K].

    As a product with one-hot rows where V is small: a scatter goes element by element on a CPU.
    """
    sums = jnp.zeros((vocabulary, rows.shape[1]), rows.dtype)
    if vocabulary > ONE_HOT_WORDS:
        return sums.at[tokens].add(rows)
    most = max(1, ONE_HOT_BYTES // (vocabulary * rows.dtype.itemsize))
    chunks = -(-len(tokens) // most)
    size = -(-len(tokens) // chunks)
    padding = chunks * size - len(tokens)

    def add(sums: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows_c, tokens_c = chunk
        one_hot = jax.nn.one_hot(tokens_c, vocabulary, dtype=rows.dtype)
        return sums + lax.dot_general(one_hot, rows_c, TRANSPOSED_LEFT), None

    if chunks == 1:
        return add(sums, (rows, tokens))[0]
    rows = jnp.pad(rows, ((0, padding), (0, 0))).reshape(chunks, size, -1)
    tokens = jnp.pad(tokens, (0, padding), constant_values=-1).reshape(chunks, size)
    return lax.scan(add, sums, (rows, tokens))[0]
