"""Optimizers: configurations to optax transformations, SGD first.

The loss is the mean over the tokens of a batch. Code that sums over time (Zaremba's,
TensorFlow's) is matched by learning rate x steps and clip / steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lm.config import OptimConfig, is_off


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


SAFE_SQUARES = 1e-20, 1e30  # a sum of squares between these has neither over- nor underflown


def global_norm(tree: Any) -> jax.Array:
    """L2 norm over all leaves, of any magnitude.

    A plain float32 norm is inf once entries pass 1e19, and 0 once all are under 1e-23. It is read
    off in one pass; only where its square is near either end a second one scales the entries.
    """
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))
    least, most = SAFE_SQUARES
    safe = (squares > least) & (squares < most)
    return lax.cond(safe, lambda _: jnp.sqrt(squares), scaled_global_norm, tree)


def scaled_global_norm(tree: Any) -> jax.Array:
    """`global_norm`, scaled before squaring: m * sqrt(sum (x / m)^2), m = max |x|."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return safe * jnp.sqrt(sum(jnp.sum((leaf / safe) ** 2) for leaf in leaves))


def clip_by_global_norm(grads: Any, most: jax.Array | float) -> Any:
    """g * min(1, most / ||g||): optax's rule, with a norm that neither overflows nor underflows.

    optax's own divides by an infinite norm once entries pass 1e19, and so drops the update.
    """
    norm = global_norm(grads)
    factor = jnp.where(norm > most, most / jnp.where(norm > 0, norm, 1), 1)
    return jax.tree.map(lambda g: g * factor, grads)


ADAPTIVE_RATE = 0.002  # learning rate of adam and rmsprop where none is given


def make_optimizer(
    config: OptimConfig, hyper: Hyper, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clip by global norm, add the weight decay, then SGD with momentum, Adam or RMSProp.

    Clipping by the global norm keeps the gradient's direction; clipping element by element
    can turn its sign. The decay, a factor of the parameters, is added to the clipped gradient:
    PyTorch's order. `hyper` and the numbers of `config` may be traced: build the optimizer inside
    the compiled function.
    """

    def rate(count: jax.Array) -> jax.Array:
        return hyper.learning_rate * jnp.asarray(schedule(count), jnp.float32)

    momentum = None if is_off(config.momentum) else config.momentum
    rules = {
        "sgd": lambda: optax.sgd(rate, momentum=momentum),
        "adam": lambda: optax.adam(rate, config.beta1, config.beta2),
        "rmsprop": lambda: optax.rmsprop(rate, config.beta2),
    }
    decay = []
    if not is_off(config.weight_decay):
        decay.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(
        optax.stateless(lambda grads, params: clip_by_global_norm(grads, hyper.clip)),
        *decay,
        rules[config.optimizer](),
    )


def fitting_rate(config: OptimConfig, cell_rate: float) -> float:
    """The learning rate as configured; for 0, with SGD what suits the cell, else ADAPTIVE_RATE."""
    return config.learning_rate or (cell_rate if config.optimizer == "sgd" else ADAPTIVE_RATE)
