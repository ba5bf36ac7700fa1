"""What a run concludes from its validation losses, and the average of its parameters.

Both are part of the training state, so a resumed run goes on with them.

    plateau      the learning rate is decayed when the loss is no better than the best so far
    stalled      the loss is worse than the best of all evaluations but the last n before it
    average      mean of the parameters over the steps since averaging began

Stalling is the trigger of NT-ASGD (non-monotonically triggered averaged SGD), n its
non-monotone interval, and serves for early stopping too.

Source: Merity, Keskar & Socher 2017 (arXiv:1708.02182), section 3; Polyak & Juditsky 1992.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lm.config import OptimConfig


@flax.struct.dataclass
class Monitor:
    """Validation losses so far, in nats per token; inf where there is none yet."""

    best: jax.Array  # float32 []
    recent: jax.Array  # float32 [n], newest last
    older: jax.Array  # float32 [], best of those before `recent`
    rate: jax.Array  # float32 [], factor on the learning rate
    stalled: jax.Array  # bool [], at any evaluation so far


@flax.struct.dataclass
class Average:
    """Mean of the parameters after each step since averaging began."""

    on: jax.Array  # bool []
    steps: jax.Array  # int32 [], how many are in it; 0: not begun
    params: Any


def init_monitor(config: OptimConfig) -> Monitor:
    """Before the first evaluation."""

    def unseen(*shape: int) -> jax.Array:  # a buffer for each: they are donated
        return jnp.full(shape, jnp.inf, jnp.float32)

    return Monitor(
        best=unseen(),
        recent=unseen(config.patience),
        older=unseen(),
        rate=jnp.ones((), jnp.float32),
        stalled=jnp.asarray(False),
    )


def init_average(config: OptimConfig, params: Any) -> Average | None:
    """Before the first step; None where nothing is averaged."""
    if config.averaging == "none":
        return None
    on = jnp.asarray(config.averaging == "always")
    return Average(on, jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))


def observe(
    config: OptimConfig, monitor: Monitor, average: Average | None, loss: jax.Array | float
) -> tuple[Monitor, Average | None]:
    """Take in one validation loss, nats per token."""
    loss = jnp.asarray(loss, jnp.float32)
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)  # the worst there is
    rate = monitor.rate
    if config.schedule == "plateau":
        rate = jnp.where(loss < monitor.best, rate, rate * config.decay)
    stalled = monitor.stalled | (loss > monitor.older)
    if average is not None and config.averaging == "triggered":
        average = average.replace(on=average.on | stalled)  # type: ignore[attr-defined]
    seen = Monitor(
        best=jnp.minimum(monitor.best, loss),
        recent=jnp.append(monitor.recent[1:], loss),
        older=jnp.minimum(monitor.older, monitor.recent[0]),
        rate=rate,
        stalled=stalled,
    )
    return seen, average


def take_in(average: Average | None, params: Any) -> Average | None:
    """The average with the parameters after one more step, if averaging has begun."""
    if average is None:
        return None

    def with_these(average: Average) -> Average:
        steps = average.steps + 1
        mean = jax.tree.map(
            lambda m, p: m + (p - m) / steps.astype(p.dtype), average.params, params
        )
        return Average(average.on, steps, mean)

    return jax.lax.cond(average.on, with_these, lambda same: same, average)


def averaged(average: Average | None, params: Any) -> Any:
    """What is to be evaluated: the average once there is one, else the parameters."""
    if average is None:
        return params
    return jax.tree.map(lambda m, p: jnp.where(average.steps > 0, m, p), average.params, params)
