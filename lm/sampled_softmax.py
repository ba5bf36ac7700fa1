"""Sampled softmax: the loss of training over a few words, drawn anew for each batch.

    s_w  = h W + b                                         for the target and the drawn words
    s'_w = s_w - log q_w                                   q_w: how probably w is drawn
    nll  = log(exp s'_target + sum over drawn w, target apart, of exp s'_w) - s'_target

Each word is drawn, or not, for itself, with q_w = min(1, c (log(w + 2) - log(w + 1))): ids go by
falling frequency (`lm.data.vocabulary`), so this is about Zipf's law, and the most frequent words
are always there. Given the drawn words with the target among them, p(w) / q_w is in proportion
to how probably w is the target, whence the correction: the loss is least where softmax(s) = p,
the full softmax, which evaluation uses. One draw serves all rows of a batch; a row's own target,
where it is drawn too, counts once.

Sources: Bengio & Senecal 2008 (IEEE Trans. Neural Networks 19); Jean, Cho, Memisevic & Bengio
2015, arXiv:1412.2007, section 3. Log-uniform chances and the removal of targets that are drawn:
TensorFlow's sampled_softmax_loss. Here, unlike there, draws are independent, so that q_w is exact
and no word comes twice; how many come varies a little, and c is such that all fit.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.loss import chunk_rows, scan_chunks
from lm.products import TRANSPOSED_LEFT, TRANSPOSED_RIGHT, column_sums, dot

SPARE = 5  # standard deviations of the number of drawn words that room is kept for


class Sample(NamedTuple):
    """The words that one batch is trained on besides its targets."""

    words: jax.Array  # int32 [K], ascending, then V where fewer were drawn
    log_q: jax.Array  # float32 [V], of every word


def word_chances(vocabulary: int, most: int) -> np.ndarray:
    """q_w of each word, float64 [V], so that hardly ever more than `most` are drawn.

    Where `most` is V or more, every word is drawn.
    """
    if most >= vocabulary:
        return np.ones(vocabulary)
    zipf = np.log1p(1 / np.arange(1, vocabulary + 1))
    low, high = 0.0, most / zipf[-1]
    for _ in range(60):
        middle = (low + high) / 2
        q = np.minimum(1, middle * zipf)
        needed = q.sum() + SPARE * np.sqrt(np.sum(q * (1 - q)))
        low, high = (middle, high) if needed <= most else (low, middle)
    q = np.minimum(1, low * zipf)
    return q


def draw_words(key: jax.Array, vocabulary: int, most: int) -> Sample:
    """A sample for one batch.

    Args:
      key: a typed PRNG key, for this batch alone.
      vocabulary: V.
      most: K, words there is room for. If more are drawn, once in millions of batches, the
        rarest are left away.
    """
    chances = word_chances(vocabulary, most)
    drawn = jax.random.uniform(key, (vocabulary,), jnp.float32) < chances.astype(np.float32)
    size = min(most, vocabulary)
    words = jnp.nonzero(drawn, size=size, fill_value=vocabulary)[0]
    return Sample(words.astype(jnp.int32), jnp.asarray(np.log(chances), jnp.float32))


def sampled_weighted_nats(
    h: jax.Array,
    w: jax.Array,
    b: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    sample: Sample,
    dtype: Any = None,
) -> jax.Array:
    """sum over n of weights_n * nll_n of the sampled words, a scalar in nats.

    Args:
      h: [N, H].
      w: [H, V].
      b: [V].
      targets: int [N].
      weights: float [N]: 0 on padding; 1 / tokens gives the mean per token.
      dtype: that operands of the products are rounded to; None: none is.
    """
    words = jnp.minimum(sample.words, w.shape[1] - 1)
    log_q = jnp.where(sample.words < w.shape[1], jnp.take(sample.log_q, words), jnp.inf)
    both = jnp.concatenate([words, targets.astype(words.dtype)])  # one gather, one scatter
    columns, biases = jnp.take(w, both, axis=1), jnp.take(b, both)
    size = words.shape[0]
    shifts = jnp.concatenate([log_q, jnp.take(sample.log_q, targets)])
    biases = biases - shifts.astype(biases.dtype)
    own = jnp.sum(h * columns[:, size:].T, axis=-1) + biases[size:]
    drawn_w, drawn_b = columns[:, :size], biases[:size]
    return drawn_nats(h, drawn_w, drawn_b, own, sample.words, targets, weights, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def drawn_nats(
    h: jax.Array,
    w: jax.Array,
    b: jax.Array,
    own: jax.Array,
    words: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any = None,
) -> jax.Array:
    """sum over n of weights_n * (log(exp own_n + sum of exp(h_n W + b)) - own_n).

    The sum is over the words that are not the row's target. The gradient is taken in the forward
    pass, a chunk of rows at a time, as in `lm.loss`.

    Args:
      h: [N, H].
      w, b: of the drawn words, [H, K] and [K]; b = -inf where none stands.
      own: [N], the target's score.
      words: int [K].
      targets: int [N].
      weights: float [N].
      dtype: that operands of the products are rounded to; None: none is.
    """
    return _drawn_forward(h, w, b, own, words, targets, weights, dtype)[0]


def _drawn_forward(
    h: jax.Array,
    w: jax.Array,
    b: jax.Array,
    own: jax.Array,
    words: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, Any]:
    rows = chunk_rows(h.shape[0], w.shape[1], h.dtype.itemsize)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        d_w, d_b = carry
        h_c, own_c, targets_c, weights_c = inputs
        scores = dot(h_c, w, dtype) + b[None, :]
        scores = jnp.where(words[None, :] == targets_c[:, None], -jnp.inf, scores)
        log_z = jnp.logaddexp(jax.nn.logsumexp(scores, axis=-1), own_c)
        d_scores = jnp.exp(scores - log_z[:, None]) * weights_c[:, None]
        d_own = (jnp.exp(own_c - log_z) - 1) * weights_c
        d_w_c = dot(h_c, d_scores, dtype, TRANSPOSED_LEFT)
        d_h_c = dot(d_scores, w, dtype, TRANSPOSED_RIGHT)
        carry = d_w + d_w_c, d_b + column_sums(d_scores)
        return carry, (log_z - own_c, d_h_c, d_own)

    zeros = jnp.zeros_like(w), jnp.zeros_like(b)
    (d_w, d_b), (nats, d_h, d_own) = scan_chunks(step, zeros, (h, own, targets, weights), rows)
    return jnp.sum(nats * weights), (d_h, d_w, d_b, d_own, nats)


def _drawn_backward(dtype: Any, found: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    d_h, d_w, d_b, d_own, nats = (cotangent * array for array in found)
    return d_h, d_w, d_b, d_own, None, None, nats


drawn_nats.defvjp(_drawn_forward, _drawn_backward)
