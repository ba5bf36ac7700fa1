"""Training: one step, many steps a dispatch, and a run as a stream of its measurements.

    J = mean over tokens of -log p(w_{t+1} | w_1 .. w_t)      p <- p - rate * clip(dJ/dp)

Gradients stop where a chunk of truncated BPTT starts: the state that enters it is a constant.
On several devices each has a share of the batch's rows, and the gradient is summed over them once
a step (`lm.mesh`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.nn import logsumexp
from jax.sharding import Mesh

from lm import model
from lm.config import NOT_REGULARIZED, ModelConfig, OptimConfig, RegularizeConfig, is_off
from lm.data.batches import Batch, Batches
from lm.mesh import (
    AXIS,
    BY_COLUMN,
    BY_ROW,
    EVERYWHERE,
    IN_BLOCK,
    place,
    place_rows,
    shardings,
    total,
)
from lm.monitor import Average, Monitor, averaged, init_average, init_monitor, take_in
from lm.optim import Hyper, global_norm, make_optimizer
from lm.regularize import NO_MASKS, Masks, activation_penalty, draw_masks, slowness_penalty
from lm.remat import rematerialize
from lm.scans import drop
from lm.softmax import training_nats


@flax.struct.dataclass
class TrainState:
    """All that a run is, between two steps: saving it and going on changes nothing."""

    step: jax.Array  # int32 []
    params: model.Params
    opt_state: Any
    carry: model.Carry  # recurrent state of each layer
    key: jax.Array  # PRNG key of the run, for what a step draws, folded with the step
    monitor: Monitor  # validation losses so far
    average: Average | None  # of the parameters

    @property
    def evaluated_params(self) -> model.Params:
        """The parameters that evaluation is of: averaged ones, once there are some."""
        params: model.Params = averaged(self.average, self.params)
        return params


@flax.struct.dataclass
class StepMetrics:
    """What one step measured, each a float32 scalar unless said."""

    nats: jax.Array  # sum over the batch
    tokens: jax.Array
    grad_norm: jax.Array  # global L2 norm, before clipping
    log_delta: jax.Array | None = None  # log ||dL/dz_t|| of each layer, t = 1 .. T, nats [L, T]


# How a state, a batch and its masks lie over the devices of a mesh.
STATE = TrainState(
    step=EVERYWHERE,
    params=EVERYWHERE,
    opt_state=EVERYWHERE,
    carry=BY_ROW,
    key=EVERYWHERE,
    monitor=EVERYWHERE,
    average=EVERYWHERE,
)
BATCH = Batch(BY_COLUMN, BY_COLUMN, BY_COLUMN, EVERYWHERE, EVERYWHERE)
BLOCK = Batch(IN_BLOCK, IN_BLOCK, IN_BLOCK, EVERYWHERE, EVERYWHERE)
MASKS = Masks(EVERYWHERE, BY_COLUMN, BY_COLUMN, BY_COLUMN, BY_ROW, EVERYWHERE)

# (state, hyper, batches, count) -> (state, metrics of each step, whether all parameters are finite)
Block = Callable[..., tuple[TrainState, StepMetrics, jax.Array]]


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
        monitor=init_monitor(optim),
        average=init_average(optim, params),
    )


def place_state(state: TrainState, mesh: Mesh | None) -> TrainState:
    """A state laid out over a mesh: the carried state by rows, all else on every device."""
    placed: TrainState = state if mesh is None else place(mesh, state, STATE)
    return placed


def batch_nats(
    config: ModelConfig,
    params: model.Params,
    carry: model.Carry,
    batch: Any,
    gauges: tuple[jax.Array, ...] | None = None,
    masks: Masks = NO_MASKS,
    regularize: RegularizeConfig = NOT_REGULARIZED,
    key: jax.Array | None = None,
    axis: str | None = None,
) -> tuple[jax.Array, tuple[model.Carry, jax.Array, jax.Array]]:
    """Mean nats per token of a batch, the loss J, plus the penalties that are configured.

    Args:
      key: for the words of a sampled softmax, for this batch alone; None: exact.
      axis: of the mesh that the batch's rows are spread over; then J and the sum of nats are
        what these rows add to those of the batch, and tokens are the batch's.

    Returns:
      (J, (carry after the batch, sum of nats without penalties, tokens)).
    """
    carry, h = model.apply(config, params, carry, batch.inputs, batch.mask, gauges, masks)
    dropped = drop(h, masks.output)
    weights = jnp.ones(batch.targets.shape) if batch.mask is None else batch.mask
    weights = weights.reshape(-1).astype(h.dtype)
    tokens = total(weights.sum(), axis)
    mean = training_nats(
        config,
        params,
        dropped.reshape(-1, h.shape[-1]),
        batch.targets.reshape(-1),
        weights / jnp.maximum(tokens, 1),  # there is none in a chunk of padding
        key,
    )
    loss = mean
    if not is_off(regularize.activation_penalty):
        loss += regularize.activation_penalty * activation_penalty(dropped, batch.mask, axis)
    if not is_off(regularize.slowness_penalty):
        loss += regularize.slowness_penalty * slowness_penalty(h, batch.mask, axis)
    return loss, (carry, mean * tokens, tokens)


class BatchGradient(NamedTuple):
    """What the backward pass of a batch finds."""

    grads: model.Params
    nats: jax.Array  # sum over the batch's tokens
    tokens: jax.Array
    log_delta: jax.Array | None  # nats [L, T]


# (params, carry, batch, gauges, masks, key) -> (carry after the batch, BatchGradient)
Gradient = Callable[..., tuple[model.Carry, BatchGradient]]


def make_gradient(
    config: ModelConfig, regularize: RegularizeConfig, remat: bool, axis: str | None = None
) -> Gradient:
    """The gradient of `batch_nats`; of rows that are spread over an axis, summed over it."""
    nats_of = rematerialize(batch_nats) if remat else batch_nats
    loss = jax.value_and_grad(nats_of, argnums=(1, 4), has_aux=True)

    def gradient(
        params: model.Params,
        carry: model.Carry,
        batch: Any,
        gauges: tuple[jax.Array, ...] | None,
        masks: Masks,
        key: jax.Array,
    ) -> tuple[model.Carry, BatchGradient]:
        (_, (carry, nats, tokens)), (grads, read) = loss(
            config, params, carry, batch, gauges, masks, regularize, key, axis
        )
        log_delta = None if gauges is None else jnp.stack(read)
        if axis is not None:
            grads, nats = lax.psum((grads, nats), axis)
            if log_delta is not None:  # root of the sum of squares
                log_delta = logsumexp(2 * lax.all_gather(log_delta, axis), axis=0) / 2
        return carry, BatchGradient(grads, nats, tokens, log_delta)

    return gradient


def spread_rows(gradient: Gradient, mesh: Mesh) -> Gradient:
    """`gradient`, made for the mesh's axis, with each device taking its share of the rows."""
    return jax.shard_map(
        gradient,
        mesh=mesh,
        in_specs=(EVERYWHERE, BY_ROW, BATCH, EVERYWHERE, MASKS, EVERYWHERE),
        out_specs=(BY_ROW, EVERYWHERE),
        check_vma=False,  # sums over devices are where they are written, and nowhere else
    )


def train_step(
    config: ModelConfig,
    optim: OptimConfig,
    schedule: optax.Schedule,
    state: TrainState,
    hyper: Hyper,
    batch: Any,
    *,
    regularize: RegularizeConfig = NOT_REGULARIZED,
    log_gradient_flow: bool = False,
    remat: bool = False,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One step of the optimizer. `batch` is a Batch without a leading axis.

    Args:
      regularize: dropout and penalties; the masks are drawn from the state's key and step, as are
        the words of a sampled softmax.
      log_gradient_flow: read log ||dL/dz_t|| off the backward pass, for StepMetrics.log_delta.
      remat: hold the activations of about sqrt(T) steps at a time, `lm.remat`.
      mesh: of the devices that the rows are spread over; None: there is one.
    """
    carry = jax.tree.map(lambda s: jnp.where(batch.reset, jnp.zeros_like(s), s), state.carry)
    time, rows = batch.inputs.shape
    key = jax.random.fold_in(state.key, state.step)
    masks = draw_masks(
        key,
        regularize,
        config,
        len(state.params.embedding),
        time,
        rows,
    )
    gradient = make_gradient(config, regularize, remat, None if mesh is None else AXIS)
    if mesh is not None:
        gradient = spread_rows(gradient, mesh)
    gauges = (jnp.zeros(time),) * config.layers if log_gradient_flow else None
    key_words = jax.random.fold_in(key, len(Masks._fields))  # past those that `key` is split into
    carry, found = gradient(state.params, carry, batch, gauges, masks, key_words)
    rate = state.monitor.rate if batch.rate is None else state.monitor.rate * batch.rate
    optimizer = make_optimizer(
        optim, hyper._replace(learning_rate=hyper.learning_rate * rate), schedule
    )
    updates, opt_state = optimizer.update(found.grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        carry=carry,
        average=take_in(state.average, params),
    )
    norm = global_norm(found.grads)
    return state, StepMetrics(found.nats, found.tokens, norm, found.log_delta)


def make_steps(
    config: ModelConfig,
    optim: OptimConfig,
    schedule: optax.Schedule,
    *,
    regularize: RegularizeConfig = NOT_REGULARIZED,
    log_gradient_flow: bool = False,
    remat: bool = False,
    mesh: Mesh | None = None,
) -> Block:
    """Many steps as one pure function, a Block that is not compiled.

    `run_steps(state, hyper, batches, count)` takes the first `count` of the stacked batches.
    Metrics are [steps of the batches], 0 past `count`. The configurations' numbers may be traced.
    """
    one_step = jax.jit(  # traced once, for its shapes and in the loop
        partial(
            train_step,
            config,
            optim,
            schedule,
            regularize=regularize,
            log_gradient_flow=log_gradient_flow,
            remat=remat,
            mesh=mesh,
        )
    )

    def run_steps(
        state: TrainState, hyper: Hyper, batches: Any, count: jax.Array
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        def batch_of(index: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[index], batches)

        def step(index: jax.Array, carried: Any) -> Any:
            state, metrics = carried
            state, measured = one_step(state, hyper, batch_of(index))
            return state, jax.tree.map(lambda a, m: a.at[index].set(m), metrics, measured)

        _, measured = jax.eval_shape(one_step, state, hyper, batch_of(0))
        size = len(batches.reset)
        metrics = jax.tree.map(lambda m: jnp.zeros((size, *m.shape), m.dtype), measured)
        state, metrics = lax.fori_loop(0, count, step, (state, metrics))
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
        return state, metrics, jnp.all(jnp.stack(finite))

    return run_steps


def make_block(
    config: ModelConfig,
    optim: OptimConfig,
    schedule: optax.Schedule,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> Block:
    """Compile many steps into one dispatch, a Block.

    `block(state, hyper, batches, count)` is that of `make_steps`, with all of the batches where no
    count is given. Both `hyper` and `count` are traced: one program serves every rate, clip, seed,
    and number of steps up to that of the batches, step by step to the same bits. The state is
    donated: use the one that comes back.

    Args:
      mesh: of the devices that the rows are spread over; None: there is one. The state is one that
        `place_state` has laid out, the batches are host arrays of the rows that this process reads.
      options: of `make_steps`.
    """
    run_steps = make_steps(config, optim, schedule, mesh=mesh, **options)
    if mesh is None:
        compiled = jax.jit(run_steps, donate_argnums=0)
    else:
        laid_out = shardings(mesh, (STATE, EVERYWHERE, EVERYWHERE))
        compiled = jax.jit(run_steps, donate_argnums=0, out_shardings=laid_out)

    def block(
        state: TrainState, hyper: Hyper, batches: Any, count: int | None = None
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        steps = len(batches.reset) if count is None else count
        if mesh is not None:
            batches = place_rows(mesh, batches, BLOCK)
        return compiled(state, hyper, batches, np.int32(steps))

    return block


class NotFiniteError(ArithmeticError):
    """The loss, the gradient or the parameters are NaN or infinite."""

    def __init__(self, step: int, nats: float, grad_norm: float, kept: str = ""):
        self.step, self.nats, self.grad_norm = step, nats, grad_norm
        super().__init__(
            f"step {step}: loss {nats} nats, gradient norm {grad_norm}; wanted these and the "
            "parameters after it finite: lower learning_rate or clip" + (kept and f" ({kept})")
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
        count = len(chunk.reset)
        state, metrics, finite = block(state, hyper, fill(chunk, steps_per_dispatch), count)
        measured = jax.tree.map(lambda m, count=count: np.asarray(m)[:count], metrics)
        bad = ~(np.isfinite(measured.nats) & np.isfinite(measured.grad_norm))
        bad[-1] |= not finite
        if bad.any():
            first = int(bad.argmax())
            raise NotFiniteError(step + first, measured.nats[first], measured.grad_norm[first])
        step += count
        yield state, measured


def fill(chunk: Batch, steps: int) -> Batch:
    """A block of batches with a leading axis of `steps`, zeros after its own."""
    spare = steps - len(chunk.reset)
    if spare == 0:
        return chunk

    def longer(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.zeros((spare, *leaf.shape[1:]), leaf.dtype)])

    filled: Batch = jax.tree.map(longer, chunk)
    return filled
