"""Embeddings, and what the first layer makes of them.

    e_t = E[w_t]        z_t = e_t W_x + b = (E W_x + b)[w_t]

A token's input product depends on the token alone. Where a batch has many more tokens than the
vocabulary has words (characters, mostly), one product for each word and a look-up take the place
of a product for each token; backward, the cotangents of a word's places are summed first, and
two products of V rows take the place of two of T x B. The numbers are the same to rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lm.products import affine


def project_tokens(
    embedding: jax.Array, w_x: jax.Array, b: jax.Array, tokens: jax.Array, dtype: Any = None
) -> jax.Array:
    """z = E[w] W_x + b by way of a table of all words. Tokens [T, B] -> [T, B, K]."""
    return take_rows(affine(embedding, w_x, b, dtype), tokens)


def is_table_cheaper(vocabulary: int, tokens: int) -> bool:
    """Whether `project_tokens` takes less time than a product for each of T x B tokens.

    There and back it multiplies 3 V D K times against 3 T B D K, and moves V K numbers more: on a
    CPU both take as long where V is 0.8 T B, whatever D and K.
    """
    return 4 * vocabulary < 3 * tokens


def take_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table[tokens]: [V, K] and int [T, B], each in [0, V) -> [T, B, K]."""
    return jnp.take(table, tokens, axis=0)
