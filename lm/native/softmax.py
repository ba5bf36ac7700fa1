"""The softmax of logits [N, V] row by row in C, on a CPU: its normaliser, and the gradient.

    log Z_n = log sum over v of e^s_nv        s = logits + b
    dL/ds_nv = weight_n (e^(s_nv - log Z_n) - [v = target_n])

XLA passes over all logits for each of maximum, exponentials, sum and gradient; softmax.c does all
of it while a row is in the cache. Under vmap, and to be differentiated, it is XLA's.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lm.native.calls import call, like, serves, unless_transformed


def log_normalizer(logits: jax.Array, b: jax.Array) -> jax.Array:
    """log Z, [N, V], [V] -> [N]."""
    plain, in_c = log_normalizer_plain, log_normalizer_in_c
    run = unless_transformed(in_c, plain) if serves(logits, b) else plain
    log_z: jax.Array = run(logits, b)
    return log_z


def softmax_gradient(
    logits: jax.Array, b: jax.Array, weights: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(dL/ds [N, V], log Z [N]). [N, V], [V], float [N], int [N]."""
    plain, in_c = softmax_gradient_plain, softmax_gradient_in_c
    run = unless_transformed(in_c, plain) if serves(logits, b, weights) else plain
    found: tuple[jax.Array, jax.Array] = run(logits, b, weights, targets)
    return found


def log_normalizer_plain(logits: jax.Array, b: jax.Array) -> jax.Array:
    """`log_normalizer` by XLA."""
    return jax.nn.logsumexp(logits + b[None, :], axis=-1)


def log_normalizer_in_c(logits: jax.Array, b: jax.Array) -> jax.Array:
    """`log_normalizer` of float32."""
    log_z: jax.Array = call("log_normalizer", like(logits, len(logits)), logits, b)
    return log_z


def softmax_gradient_plain(
    logits: jax.Array, b: jax.Array, weights: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`softmax_gradient` by XLA, without a scatter."""
    scores = logits + b[None, :]
    log_z = jax.nn.logsumexp(scores, axis=-1)
    words = lax.broadcasted_iota(targets.dtype, scores.shape, 1)
    onehot = (words == targets[:, None]).astype(scores.dtype)
    return (jnp.exp(scores - log_z[:, None]) - onehot) * weights[:, None], log_z


def softmax_gradient_in_c(
    logits: jax.Array, b: jax.Array, weights: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`softmax_gradient` of float32; the gradient takes the place of the logits."""
    results = like(logits, *logits.shape), like(logits, len(logits))
    numbers = logits, b, weights, targets.astype(jnp.int32)
    gradient, log_z = call("softmax_gradient", results, *numbers, aliases={0: 0})
    return gradient, log_z
