"""Adaptive softmax: rare words stand in clusters, each behind one entry of a smaller softmax.

    p(w | h) = softmax(h W + b)[w]                                                w frequent
    p(w | h) = softmax(h W + b)[entry of i] softmax(h P_i W_i + b_i)[w]           w in cluster i

Ids go by falling frequency (`lm.data.vocabulary`), so a cluster is a range of ids: with cutoffs
(a, b) the frequent words, the head's own, are 0 .. a - 1, and the clusters a .. b - 1 and
b .. V - 1. The head W [H, a + clusters] has the frequent words first, then an entry a cluster.
Cluster i = 1, 2, .. sees h through a projection to H / factor^i numbers.

Source: Grave, Joulin, Cisse, Grangier & Jegou 2017, arXiv:1609.04309, sections 4.2 and 4.3, with
factor = 4. Each cluster has a bias here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Tail(NamedTuple):
    """The softmax within one cluster."""

    projection: jax.Array  # P_i [H, H_i]
    w: jax.Array  # [H_i, V_i]
    b: jax.Array  # [V_i]


class AdaptiveWeights(NamedTuple):
    """What stands where a full softmax has W [H, V]; its bias is the head's."""

    head: jax.Array  # [H, a + clusters]
    tails: tuple[Tail, ...]


def choose_cutoffs(cutoffs: tuple[int, ...], vocabulary: int) -> tuple[int, ...]:
    """Where clusters start: as given, else at a sixteenth and at a quarter of the vocabulary.

    That is (2,750, 11,000) for text8's 44,000 words and (16,700, 66,900) for WikiText-103's
    267,735, where Grave et al. have (2,000, 10,000) and (20,000, 60,000).

    Args:
      cutoffs: ascending ids; empty: the default, fewer than two where words are few.
      vocabulary: V.

    Raises:
      ValueError: a cluster would have no word.
    """
    if not cutoffs:
        return tuple(sorted({vocabulary // 16, vocabulary // 4} - {0}))
    if cutoffs[-1] >= vocabulary:
        raise ValueError(
            f"cutoffs are {', '.join(map(str, cutoffs))} with a vocabulary of {vocabulary}; wanted "
            f"each below {vocabulary}, so that every cluster has a word"
        )
    return cutoffs


def init_tails(
    key: jax.Array,
    hidden: int,
    vocabulary: int,
    cutoffs: tuple[int, ...],
    factor: int,
    dtype: Any = jnp.float32,
) -> tuple[Tail, ...]:
    """Clusters at the start of training: variance kept by both products, biases 0.

    Args:
      key: a typed PRNG key.
      hidden: H.
      vocabulary: V.
      cutoffs: the first id of each cluster.
      factor: H_i is H / factor^i, at least 1.
    """
    tails = []
    ends = (*cutoffs, vocabulary)[1:]
    keys = jax.random.split(key, (len(cutoffs), 2))
    for i, (start, end) in enumerate(zip(cutoffs, ends, strict=True)):
        inner = max(1, hidden // factor ** (i + 1))
        projection = jax.random.normal(keys[i, 0], (hidden, inner), dtype) / hidden**0.5
        w = jax.random.normal(keys[i, 1], (inner, end - start), dtype) / inner**0.5
        tails.append(Tail(projection, w, jnp.zeros(end - start, dtype)))
    return tuple(tails)


def first_ids(w: AdaptiveWeights) -> tuple[int, ...]:
    """The cutoffs: the first id of each cluster."""
    starts = [w.head.shape[1] - len(w.tails)]
    for tail in w.tails[:-1]:
        starts.append(starts[-1] + tail.b.shape[0])
    return tuple(starts)


def log_probabilities(h: jax.Array, w: AdaptiveWeights, b: jax.Array) -> jax.Array:
    """log p of every word. h [N, H], b [a + clusters] -> [N, V], in nats."""
    head = jax.nn.log_softmax(h @ w.head + b[None, :], axis=-1)
    frequent = b.shape[0] - len(w.tails)
    parts = [head[:, :frequent]]
    for i, tail in enumerate(w.tails):
        within = jax.nn.log_softmax((h @ tail.projection) @ tail.w + tail.b[None, :], axis=-1)
        parts.append(head[:, frequent + i, None] + within)
    return jnp.concatenate(parts, axis=-1)
