"""Training: one step, many steps a dispatch, and a run as a stream of its measurements.

    J = mean over tokens of -log p(w_{t+1} | w_1 .. w_t)      p <- p - rate * clip(dJ/dp)

Gradients stop where a chunk of truncated BPTT starts: the state that enters it is a constant.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lm import model
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import Batch, Batches
from lm.loss import weighted_nats
from lm.optim import Hyper, global_norm, make_optimizer


@flax.struct.dataclass
class TrainState:
    """All that a run is, between two steps: saving it and going on changes nothing."""

    step: jax.Array  # int32 []
    params: model.Params
    opt_state: Any
    carry: model.Carry  # recurrent state of each layer
    key: jax.Array  # PRNG key of the run, for what a step draws, folded with the step


@flax.struct.dataclass
class StepMetrics:
    """What one step measured, each a float32 scalar unless said."""

    nats: jax.Array  # sum over the batch
    tokens: jax.Array
    grad_norm: jax.Array  # global L2 norm, before clipping
    log_delta: jax.Array | None = None  # log ||dL/dz_t|| of each layer, t = 1 .. T, nats [L, T]


# (state, hyper, batches) -> (state, metrics of each step, whether all parameters are finite)
Block = Callable[[TrainState, Hyper, Any], tuple[TrainState, StepMetrics, jax.Array]]


def init_state(
    key: jax.Array,
    config: ModelConfig,
    optim: OptimConfig,
    vocabulary: int,
    batch_size: int,
    *,
    forget_bias: jax.Array | float | None = None,
) -> TrainState:
    """The state before the first step."""
    key_params, key_run = jax.random.split(key)
    params = model.init(key_params, config, vocabulary, forget_bias=forget_bias)
    optimizer = make_optimizer(optim, Hyper(1.0, 1.0), optax.constant_schedule(1.0))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=model.init_carry(config, batch_size),
        key=key_run,
    )


def batch_nats(
    config: ModelConfig,
    params: model.Params,
    carry: model.Carry,
    batch: Any,
    gauges: tuple[jax.Array, ...] | None = None,
) -> tuple[jax.Array, tuple[model.Carry, jax.Array, jax.Array]]:
    """Mean nats per token of a batch, the loss J.

    Returns:
      (J, (carry after the batch, sum of nats, tokens)).
    """
    carry, h = model.apply(config, params, carry, batch.inputs, batch.mask, gauges)
    weights = jnp.ones(batch.targets.shape) if batch.mask is None else batch.mask
    weights = weights.reshape(-1).astype(h.dtype)
    tokens = weights.sum()
    mean = weighted_nats(
        h.reshape(-1, h.shape[-1]),
        model.softmax_weights(params),
        params.softmax_b,
        batch.targets.reshape(-1),
        weights / tokens,
    )
    return mean, (carry, mean * tokens, tokens)


def train_step(
    config: ModelConfig,
    optim: OptimConfig,
    schedule: optax.Schedule,
    state: TrainState,
    hyper: Hyper,
    batch: Any,
    *,
    log_gradient_flow: bool = False,
) -> tuple[TrainState, StepMetrics]:
    """One SGD step. `batch` is a Batch without a leading axis.

    Args:
      log_gradient_flow: read log ||dL/dz_t|| off the backward pass, for StepMetrics.log_delta.
    """
    carry = jax.tree.map(lambda s: jnp.where(batch.reset, jnp.zeros_like(s), s), state.carry)
    loss = jax.value_and_grad(batch_nats, argnums=(1, 4), has_aux=True)
    gauges = (jnp.zeros(len(batch.inputs)),) * config.layers if log_gradient_flow else None
    (_, (carry, nats, tokens)), (grads, read) = loss(config, state.params, carry, batch, gauges)
    optimizer = make_optimizer(optim, hyper, schedule)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=carry,
    )
    log_delta = jnp.stack(read) if log_gradient_flow else None
    return state, StepMetrics(nats, tokens, global_norm(grads), log_delta)


def make_block(
    config: ModelConfig,
    optim: OptimConfig,
    schedule: optax.Schedule,
    *,
    log_gradient_flow: bool = False,
) -> Block:
    """Compile many steps into one dispatch, a Block.

    The state is donated: use the one that comes back.
    """

    def block(
        state: TrainState, hyper: Hyper, batches: Any
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        one_step = partial(train_step, config, optim, schedule, log_gradient_flow=log_gradient_flow)
        state, metrics = lax.scan(lambda s, batch: one_step(s, hyper, batch), state, batches)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
        return state, metrics, jnp.all(jnp.stack(finite))

    return jax.jit(block, donate_argnums=0)


class NotFiniteError(ArithmeticError):
    """The loss, the gradient or the parameters are NaN or infinite."""

    def __init__(self, step: int, nats: float, grad_norm: float):
        self.step = step
        super().__init__(
            f"step {step}: loss {nats} nats, gradient norm {grad_norm}; wanted these and the "
            "parameters after it finite: lower learning_rate or clip"
        )


def run_blocks(
    state: TrainState,
    hyper: Hyper,
    block: Block,
    batches: Batches,
    *,
    stop: int,
    steps_per_dispatch: int,
) -> Iterator[tuple[TrainState, StepMetrics]]:
    """Train from the state's step to step `stop`, yielding after every dispatch.

    Args:
      steps_per_dispatch: most steps in one; the host acts only between dispatches.

    Yields:
      (state, StepMetrics of NumPy arrays [steps]). The state is donated to the next
      dispatch: take what you need of it before asking for the next.

    Raises:
      NotFiniteError: names the first step whose loss or gradient is not finite, or the last of
      a dispatch after which a parameter is not. Nothing of that dispatch is yielded.
    """
    step = int(state.step)
    while step < stop:
        chunk: Batch = batches.block(step, min(steps_per_dispatch, stop - step))
        state, metrics, finite = block(state, hyper, chunk)
        measured = jax.tree.map(np.asarray, metrics)
        bad = ~(np.isfinite(measured.nats) & np.isfinite(measured.grad_norm))
        bad[-1] |= not finite
        if bad.any():
            first = int(bad.argmax())
            raise NotFiniteError(step + first, measured.nats[first], measured.grad_norm[first])
        step += len(chunk.reset)
        yield state, measured
