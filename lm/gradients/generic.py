"""Gradient flow of any `step(params, state, x_t) -> (state, h_t)`, by autodiff of one step.

What `lm.gradients.flow` measures of our cells through the engine's own backward step, for a
recurrence of which nothing is known but its step. Rows of a batch must not see each other.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lm.gradients.jacobian import run_states
from lm.linalg import full_precision
from lm.log_space import common_scale, log_norm, rescale
from lm.recurrence import Step
from lm.scans import select


class StepCurves(NamedTuple):
    """log ||dL_T/ds_{T - lag}|| against lag, natural log of an L2 norm, each [lags, B].

    The leaves share one scale: one that lies further below the joint norm than its type can
    hold (87 nats in float32) reads -inf.
    """

    leaves: tuple[jax.Array, ...]  # of each leaf of the state, in tree order
    state: jax.Array  # of all leaves jointly


class StepWeights(NamedTuple):
    """What the steps contribute to dL_T/dparams, each a pytree like params."""

    components: Any  # log ||G_t|| of the copy of the parameters that step T - lag uses, [lags, B]
    shares: Any  # <G_t, G> / ||G||^2 by lag, [lags, B]; they sum to 1
    total: Any  # log ||G||, G = sum of G_t = dL_T/dparams, [B]


@full_precision
def measure_step_lags(
    step: Step, params: Any, state: Any, x: jax.Array, d_h: jax.Array, output: int | None = None
) -> StepCurves:
    """Measure 1 for any step: one forward pass, one backward pass in log space.

    Args:
      state: s_0, leaves [B, ...].
      x: [T, B, D].
      d_h: dL_T/dh_T [B, H].
      output: index of the leaf of the state that is h_t itself, in tree order. The loss then
        enters there, at lag 0. None: h_t is no leaf; the loss enters through the last step, and
        lag 0 is exactly zero.

    Returns:
      StepCurves with lags 0 .. T - 1: of s_T, s_{T-1}, .. s_1.
    """
    flow = pull_back_step_log(step, params, run_states(step, params, state, x), x, d_h, output)
    return StepCurves(tuple(norms[::-1] for norms in jax.tree.leaves(flow.norms)), flow.joint[::-1])


class StepFlow(NamedTuple):
    norms: Any  # of each leaf of dL/ds_t [T, B]
    joint: jax.Array  # [T, B]
    log: jax.Array  # scale of `unit` and `unit_h`, [T, B]
    unit: Any  # dL/ds_t without what enters through h_t, leaves [T, B, ...]
    unit_h: jax.Array  # dL/dh_t where the output is no leaf of the state, [T, B, H]


def pull_back_step_log(
    step: Step, params: Any, states: Any, x: jax.Array, d_h: jax.Array, output: int | None
) -> StepFlow:
    """The backward scan of `measure_step_lags`, with the cotangents that it carries."""
    before = jax.tree.map(lambda leaf: leaf[:-1], states)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), states)
    log_h = log_norm(d_h)
    finite = jnp.where(jnp.isneginf(log_h), 0, log_h)
    d_out = d_h * jnp.exp(-finite)[:, None]
    last, d_last = log_h, zero
    if output is not None:
        leaves, tree = jax.tree.flatten(zero)
        leaves[output] = d_out.reshape(leaves[output].shape)
        d_last, d_out = jax.tree.unflatten(tree, leaves), jnp.zeros_like(d_out)

    def back(carry: Any, inputs: Any) -> tuple[Any, StepFlow]:
        log, d_s, d_out = carry
        s_prev, x_t = inputs
        rows = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), d_s)
        norms = jax.tree.map(lambda leaf: log + log_norm(leaf), rows)
        joint = log + log_norm(jnp.concatenate(jax.tree.leaves(rows), axis=1))
        _, pull = jax.vjp(lambda s: step(params, s, x_t), s_prev)
        (d_prev,) = pull((d_s, d_out))
        emitted = StepFlow(norms, joint, log, d_s, d_out)
        log, flat = rescale(log, jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), d_prev))
        d_prev = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), flat, zero)
        return (log, d_prev, jnp.zeros_like(d_out)), emitted

    return lax.scan(back, (last, d_last, d_out), (before, x), reverse=True)[1]


@full_precision
def measure_step_weights(
    step: Step, params: Any, state: Any, x: jax.Array, d_h: jax.Array, output: int | None = None
) -> StepWeights:
    """Measure 4 for any step: each step's part in the gradient of the shared parameters.

    G_t is the gradient of the copy of the parameters that step t alone would use. Each row of
    the batch has its own. Memory: twice the parameters a row; no G_t outlives its step.
    Arguments as `measure_step_lags`.
    """

    def one_row(row: Any) -> StepWeights:
        state, x, d_h = row
        states = run_states(step, params, state, x)
        flow = pull_back_step_log(step, params, states, x, d_h, output)
        log = flow.log[:, 0]
        inputs = (jax.tree.map(lambda leaf: leaf[:-1], states), x, flow.unit, flow.unit_h)

        def component(s_prev: Any, x_t: jax.Array, d_s: Any, d_out: jax.Array) -> Any:
            return jax.vjp(lambda p: step(p, s_prev, x_t), params)[1]((d_s, d_out))[0]

        def add(carry: Any, one: Any) -> tuple[Any, None]:
            scale, total = carry
            scale, keep, new = common_scale(scale, one[0])
            parts = component(*one[1])
            return (scale, jax.tree.map(lambda a, g: a * keep + g * new, total, parts)), None

        start = (jnp.full_like(log[0], -jnp.inf), jax.tree.map(jnp.zeros_like, params))
        (scale, total), _ = lax.scan(add, start, (log, inputs), reverse=True)

        def split(_: None, one: Any) -> tuple[None, Any]:
            parts = component(*one[1])
            norms = jax.tree.map(lambda g: one[0] + log_norm(g.reshape(-1)), parts)
            ratio = jnp.exp(one[0] - jnp.where(jnp.isneginf(scale), 0, scale))
            return None, (norms, jax.tree.map(lambda g, a: ratio * projection(g, a), parts, total))

        _, (norms, shares) = lax.scan(split, None, (log, inputs))
        norms, shares = jax.tree.map(lambda v: v[::-1], (norms, shares))  # newest first
        sums = jax.tree.map(lambda a: scale + log_norm(a.reshape(-1)), total)
        return StepWeights(norms, shares, sums)

    rows = (
        jax.tree.map(lambda leaf: leaf[:, None], state),
        jnp.moveaxis(x, 1, 0)[:, :, None],
        d_h[:, None],
    )
    found = lax.map(one_row, rows)  # leaves [B, lags]
    components, shares = jax.tree.map(lambda v: v.T, (found.components, found.shares))
    return StepWeights(components, shares, found.total)


def projection(part: jax.Array, whole: jax.Array) -> jax.Array:
    """<part, whole> / ||whole||^2, and 0 where the whole is 0."""
    part, whole = part.reshape(-1), whole.reshape(-1)
    largest = jnp.max(jnp.abs(whole), initial=0)
    safe = jnp.where(largest > 0, largest, 1)
    unit = whole / safe
    return jnp.dot(part / safe, unit) / jnp.where(largest > 0, jnp.dot(unit, unit), 1)


@full_precision
def measure_step_lengths(
    step: Step,
    params: Any,
    state: Any,
    x: jax.Array,
    d_h: jax.Array,
    lengths: tuple[int, ...],
) -> Any:
    """Measure 5 for any step: log ||dL_T/dparams|| against T, for the prefixes of x.

    One program for all lengths: past its length a run stands still.

    Args:
      state: s_0, leaves [B, ...].
      x: [T, B, ...].
      d_h: dL_T/dh_T at each length, [lengths, B, H].
      lengths: each from 1 to T.

    Returns:
      a pytree like params of [lengths, B], nats.
    """
    time, batch = x.shape[:2]
    flat = x.reshape(time, batch, -1)
    stopped = Stopped(step, x.shape[2:])
    first = (state, jnp.zeros_like(d_h[0]))
    last_leaf = len(jax.tree.leaves(first)) - 1

    def one_length(one: tuple[jax.Array, jax.Array]) -> Any:
        length, d_last = one
        runs = (jnp.arange(time) < length).astype(x.dtype)
        column = jnp.broadcast_to(runs[:, None, None], (time, batch, 1))
        marked = jnp.concatenate([flat, column], axis=2)
        return measure_step_weights(stopped, params, first, marked, d_last, last_leaf).total

    return lax.map(one_length, (jnp.asarray(lengths), d_h))


@dataclass(frozen=True)
class Stopped:
    """A step that stands still where the last column of its input is 0, and remembers h.

    Its state is (state, h); the gradient of a loss at the end enters at h and arrives untouched
    at the last step that ran.
    """

    step: Step
    shape: tuple[int, ...]  # of one row's input, without the column

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        runs = x_t[:, -1] != 0
        new = self.step(params, state[0], x_t[:, :-1].reshape(-1, *self.shape))
        new = select(runs, new, state)
        return new, new[1]
