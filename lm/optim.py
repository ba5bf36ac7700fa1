"""Optimizers: configurations to optax transformations, SGD first.

The loss is the mean over the tokens of a batch. Code that sums over time (Zaremba's,
TensorFlow's) is matched by learning rate x steps and clip / steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config import OptimConfig


class Hyper(NamedTuple):
    """What is swept without a new compilation; each a scalar, traced."""

    learning_rate: jax.Array | float
    clip: jax.Array | float  # largest global L2 norm of the gradient


def make_schedule(config: OptimConfig, steps_per_epoch: int, steps: int) -> optax.Schedule:
    """Step -> factor on the learning rate, in [0, 1].

    Args:
      steps_per_epoch: steps of one pass through the text.
      steps: of the whole run.
    """
    if config.schedule == "step":
        # Zaremba et al. 2014: full rate for `decay_after` epochs, then one factor an epoch.
        def decayed(count: jax.Array) -> jax.Array:
            epoch = jnp.asarray(count) // steps_per_epoch
            late = jnp.maximum(epoch + 1 - config.decay_after, 0).astype(jnp.float32)
            return jnp.float32(config.decay) ** late

        return decayed
    if config.schedule == "cosine":
        warmup = round(config.warmup * steps)
        cosine = optax.warmup_cosine_decay_schedule(0.0 if warmup else 1.0, 1.0, warmup, steps)
        return lambda count: cosine(jnp.asarray(count, jnp.float32))
    return optax.constant_schedule(1.0)


def make_optimizer(
    config: OptimConfig, hyper: Hyper, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clip by global norm, then SGD with momentum.

    Global-norm clipping keeps the gradient's direction; clipping element by element can
    turn its sign. `hyper` may be traced: build the optimizer inside the compiled function.
    """

    def rate(count: jax.Array) -> jax.Array:
        return hyper.learning_rate * jnp.asarray(schedule(count), jnp.float32)

    return optax.chain(
        optax.clip_by_global_norm(hyper.clip),
        optax.sgd(rate, momentum=config.momentum or None),
    )
