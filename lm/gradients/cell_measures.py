"""Every gradient measure that applies to a recurrent cell, whoever wrote it, in one call.

    found = measure_cell(nn.OptimizedLSTMCell(64), variables, x=x)
    found.lags.state          # log norms of dL_T/ds_{T - lag}, [T, B]

| measure | our cells | any other cell |
|---|---|---|
| lags, weights, lengths, jacobians, singular, lyapunov, sensitivity | yes | yes |
| carousel, time_scale | with a carry c | with a leaf c that enters the next c elementwise |
| saturation | every gate | the forget gate of that carry, f = dc_t/dc_{t-1} |
| carry, paths, truncation | yes (carry: with a c, truncation: with a W_h) | no: they need gates |

A foreign LSTM with the weights of ours has the curves of ours: `tests/test_cell_measures.py`
holds Flax, Haiku and Equinox to that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm.cells.cell import Cell, CellParams
from lm.gradients.any_cell import Recurrence, State, as_recurrence
from lm.gradients.components import Truncation, measure_truncation, temporal_gram
from lm.gradients.flow import inject_at, lag_curves, pull_back_log
from lm.gradients.gates import (
    Saturation,
    carousel_log_norms,
    gate_activations,
    gate_saturation,
    time_scale,
)
from lm.gradients.generic import (
    StepWeights,
    measure_step_lags,
    measure_step_lengths,
    measure_step_weights,
)
from lm.gradients.jacobian import (
    JacobianNorms,
    product_log_norms,
    run_states,
    singular_spectrum,
    state_jacobians,
)
from lm.gradients.libraries import same_tree
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.gradients.paths import measure_paths
from lm.gradients.sensitivity import pascanu_omega, state_sensitivity
from lm.gradients.statistics import E_FOLD, FLOAT32_EPSILON, horizon, slope_per_step
from lm.recurrence import Step, project, run_forward
from lm.tables import unknown_name

MATMUL_PRECISION = "highest"  # full float32 on every backend
ELEMENTWISE = 1e-5  # largest relative error at which a Jacobian passes for diagonal


class Lags(NamedTuple):
    """Measures 1, 8 and 14: log ||dL_T/ds_{T - lag}|| in nats, lags 0 .. T - 1."""

    fields: dict[str, jax.Array]  # of each leaf of the state [T, B]
    state: jax.Array  # of all leaves jointly [T, B]
    slope: float  # of the joint curve, mean of the rows' logs: nats per step from lag 1 on
    horizon: float  # steps beyond lag 1 until it has fallen by a factor of e
    far_horizon: float  # and by float32's epsilon, 2^-23; inf: not within T
    omega: jax.Array  # Pascanu's regulariser, of lag l + 1 beside lag l [T - 1, B]


class Weights(NamedTuple):
    """Measure 4: what the steps contribute to dL_T/dparams, row by row."""

    leaves: StepWeights  # of each leaf of params
    shares: jax.Array  # each lag's share of the gradient of all parameters [T, B]; the sum is 1
    total: jax.Array  # log norm of the gradient of all parameters, nats [B]


class Lengths(NamedTuple):
    """Measure 5: log ||dL_T/dparams|| against the sequence length T, nats."""

    lengths: tuple[int, ...]
    leaves: Any  # a pytree like params of [lengths, B]
    total: jax.Array  # of all parameters jointly [lengths, B]


class Singular(NamedTuple):
    """Measure 6: log singular values of ds_l/ds_0, nats."""

    lags: tuple[int, ...]  # l
    log_values: jax.Array  # descending [lags, B, N]


class PathNorms(NamedTuple):
    """Measure 16: log norms of the two parts of dL_T/ds_{T - lag}, nats, [T, B]."""

    carried: jax.Array  # by elementwise factors alone
    recurrent: jax.Array  # through W_h at least once


class CellMeasures(NamedTuple):
    """What `measure_cell` found; None where a measure does not apply or was not asked for."""

    cell: Recurrence
    lags: Lags | None = None
    weights: Weights | None = None
    lengths: Lengths | None = None
    jacobians: JacobianNorms | None = None  # 2: norms of ds_T/ds_{T - lag}, nats [T + 1, B]
    singular: Singular | None = None
    lyapunov: jax.Array | None = None  # 7: exponents of the joint state, nats per step [B, N]
    carousel: jax.Array | None = None  # 3: log |dc_T/dc_{T - lag}| by the carry [T + 1, B, H]
    time_scale: jax.Array | None = None  # 9: 1 / (1 - f), steps [T, B, H]
    saturation: dict[str, Saturation] | None = None  # 10: of each gate, shares [H]
    sensitivity: jax.Array | None = None  # 15: log ||(ds_t/dparams) v||, nats [T, B]
    carry: jax.Array | None = None  # 1: log ||dL_T/dc||, the path through h = o tanh c too [T, B]
    paths: PathNorms | None = None
    truncation: Truncation | None = None  # 13: of the batch's dL_T/dW_h, k = 1 .. T


MEASURES = CellMeasures._fields[1:]
OF_PARAMS = ("weights", "lengths", "sensitivity")  # of a step without parameters there are none


def measure_cell(
    cell: Any,
    params: Any = None,
    *,
    x: jax.Array,
    state: Any = None,
    d_h: jax.Array | None = None,
    direction: Any = None,
    lengths: tuple[int, ...] | None = None,
    lags: tuple[int, ...] | None = None,
    measures: tuple[str, ...] = MEASURES,
) -> CellMeasures:
    """Measure the gradient flow of a recurrent cell of any origin along one batch of inputs.

    Compiled once for a cell, its shapes and these options. Where the output is no leaf of the
    state (`cell.output` is None), the loss enters through the last step and lag 0 has -inf.

    The state has N numbers a row (an LSTM's 2 H). jacobians, singular and lyapunov take T B N^2
    numbers of memory and T B N^3 of work: give them few rows, or leave them out where N is
    large. Singular values have some three digits in float32; for more give float64 parameters
    and inputs (`jax.enable_x64`).

    Args:
      cell, params: as `lm.gradients.any_cell.as_recurrence` reads them.
      x: inputs [T, B, D], T at least 2. Rows of the batch must not see each other.
      state: s_0 in the cell's own form; left out: zeros, where the cell tells its shapes.
      d_h: dL_T/dh_T [B, H]; left out: 1, the gradient of the sum of the outputs. The same is
        used at every length.
      direction: v of `sensitivity`, a pytree like the cell's parameters; left out: no
        sensitivity.
      lengths: sequence lengths of `lengths`; left out: 1, 2, 4, .. and T.
      lags: lags of `singular`; left out: the same.
      measures: which, of MEASURES.

    Returns:
      CellMeasures.

    Raises:
      ValueError: what `as_recurrence` refuses; shapes that do not fit; an unknown measure.
    """
    for name in measures:
        if name not in MEASURES:
            raise ValueError(unknown_name("measure", name, dict.fromkeys(MEASURES)))
    recurrence, start = as_recurrence(cell, params, x=x, state=state)
    if x.shape[0] < 2:
        raise ValueError(f"x has {x.shape[0]} step; wanted at least 2, for a lag to exist")
    d_h = output_gradient(recurrence, start, x, d_h)
    lengths = check_steps("lengths", lengths, x.shape[0])
    lags = check_steps("lags", lags, x.shape[0])
    path = (recurrence.step, recurrence.params, start, x)
    loss = (d_h, recurrence.output)
    with jax.default_matmul_precision(MATMUL_PRECISION):
        todo: dict[str, Callable[[], Any]] = {
            "lags": lambda: measure_lags(*path, *loss),
            "weights": lambda: measure_weights(*path, *loss),
            "lengths": lambda: measure_lengths(*path, d_h, lengths),
            "jacobians": lambda: measure_jacobians(*path),
            "singular": lambda: Singular(lags, measure_singular(*path, lags)),
            "lyapunov": lambda: measure_lyapunov(*path),
            "sensitivity": lambda: measure_sensitivity(*path, direction),
        }
        if not jax.tree.leaves(recurrence.params):
            todo = {name: todo[name] for name in todo if name not in OF_PARAMS}
        found = {name: measure() for name, measure in todo.items() if name in measures}
        if {"carousel", "time_scale", "saturation"} & set(measures):
            found |= measure_carry(recurrence, start, x)
        if isinstance(cell, Cell) and {"carry", "paths", "truncation", "saturation"} & set(
            measures
        ):
            own = cell.state(**start)
            found |= measure_engine(cell, recurrence.params, own, x, d_h)
            found["saturation"] = measure_saturation(cell, recurrence.params, own, x)
    return CellMeasures(recurrence, **{name: found.get(name) for name in measures})


def output_gradient(
    recurrence: Recurrence, state: State, x: jax.Array, d_h: jax.Array | None
) -> jax.Array:
    """dL_T/dh_T as given, checked, or ones. [B, H]."""
    _, h_t = jax.eval_shape(recurrence.step, recurrence.params, state, x[0])
    if d_h is None:
        return jnp.ones(h_t.shape, h_t.dtype)
    if d_h.shape != h_t.shape:
        raise ValueError(f"d_h has shape {d_h.shape}; wanted {h_t.shape}, as the output h_T")
    return jnp.asarray(d_h, h_t.dtype)


def check_steps(name: str, steps: tuple[int, ...] | None, time: int) -> tuple[int, ...]:
    """Lengths or lags as given, checked, or 1, 2, 4, .. and T."""
    if steps is None:
        return (*(2**k for k in range(time.bit_length()) if 2**k < time), time)
    if not steps or min(steps) < 1 or max(steps) > time:
        raise ValueError(f"{name} are {steps}; wanted each from 1 to {time}, the steps of x")
    return tuple(int(step) for step in steps)


def measure_lags(
    step: Step, params: Any, state: State, x: jax.Array, d_h: jax.Array, output: int | None
) -> Lags:
    curves = compiled_lags(step, params, state, x, d_h, output)
    mean = np.asarray(curves.state, np.float64).mean(axis=1)
    return Lags(
        dict(zip(sorted(state), curves.leaves, strict=True)),
        curves.state,
        slope_per_step(mean),
        horizon(mean, E_FOLD),
        horizon(mean, FLOAT32_EPSILON),
        pascanu_omega(curves.state),
    )


compiled_lags = jax.jit(measure_step_lags, static_argnums=(0, 5))


@partial(jax.jit, static_argnums=(0, 5))
def measure_weights(
    step: Step, params: Any, state: State, x: jax.Array, d_h: jax.Array, output: int | None
) -> Weights:
    leaves = measure_step_weights(step, params, state, x, d_h, output)
    total = joint_total(leaves.total)
    finite = jnp.where(jnp.isneginf(total), 0, total)

    def joint(shares: jax.Array, own: jax.Array) -> jax.Array:
        return shares * jnp.exp(2 * (own - finite))[None]

    parts = jax.tree.map(joint, leaves.shares, leaves.total)
    return Weights(leaves, jnp.sum(jnp.stack(jax.tree.leaves(parts)), axis=0), total)


def joint_total(log_norms: Any) -> jax.Array:
    """log of the norm of all leaves together, from the log norm of each. [...]."""
    return jax.nn.logsumexp(2 * jnp.stack(jax.tree.leaves(log_norms)), axis=0) / 2


def measure_lengths(
    step: Step,
    params: Any,
    state: State,
    x: jax.Array,
    d_h: jax.Array,
    lengths: tuple[int, ...],
) -> Lengths:
    return Lengths(lengths, *compiled_lengths(step, params, state, x, d_h, lengths))


@partial(jax.jit, static_argnums=(0, 5))
def compiled_lengths(
    step: Step,
    params: Any,
    state: State,
    x: jax.Array,
    d_h: jax.Array,
    lengths: tuple[int, ...],
) -> tuple[Any, jax.Array]:
    """(of each leaf, of all jointly); the same dL_T/dh_T at every length."""
    everywhere = jnp.broadcast_to(d_h, (len(lengths), *d_h.shape))
    leaves = measure_step_lengths(step, params, state, x, everywhere, lengths)
    return leaves, joint_total(leaves)


@partial(jax.jit, static_argnums=0)
def measure_jacobians(step: Step, params: Any, state: State, x: jax.Array) -> JacobianNorms:
    return product_log_norms(state_jacobians(step, params, state, x))


@partial(jax.jit, static_argnums=(0, 4))
def measure_singular(
    step: Step, params: Any, state: State, x: jax.Array, lags: tuple[int, ...]
) -> jax.Array:
    """[lags, B, N]."""
    rows = jnp.moveaxis(state_jacobians(step, params, state, x), 1, 0)
    found = lax.map(lambda row: singular_spectrum(row, jnp.asarray(lags)), rows)
    return jnp.moveaxis(found, 0, 1)


measure_lyapunov = jax.jit(lyapunov_spectrum, static_argnums=0)


def measure_sensitivity(
    step: Step, params: Any, state: State, x: jax.Array, direction: Any
) -> jax.Array | None:
    if direction is None:
        return None
    if not same_tree(direction, params):
        raise ValueError("direction is no pytree like the parameters; wanted an array for each")
    return compiled_sensitivity(step, params, state, x, direction)


compiled_sensitivity = jax.jit(state_sensitivity, static_argnums=0)


def measure_carry(recurrence: Recurrence, state: State, x: jax.Array) -> dict[str, Any]:
    """What the factor f = dc_t/dc_{t-1} of an elementwise carry says; nothing without one."""
    if "c" not in recurrence.fields:
        return {}
    f, again = carry_factor(recurrence.step, recurrence.params, state, x)
    if not np.allclose(f, again, rtol=ELEMENTWISE, atol=ELEMENTWISE):
        return {}
    return {
        "carousel": carousel_log_norms(jnp.abs(f)),
        "time_scale": time_scale(f),
        "saturation": {"f": gate_saturation(f)},
    }


@partial(jax.jit, static_argnums=0)
def carry_factor(
    step: Step, params: Any, state: State, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """dc_t/dc_{t-1} with the other leaves held, as J 1 and as v * (J v) for signs v.

    The two are equal where J is diagonal, and then they are its diagonal. [T, B, H] each.
    """
    states = run_states(step, params, state, x)
    before = jax.tree.map(lambda leaf: leaf[:-1], states)

    def one(s_prev: State, x_t: jax.Array, v: jax.Array) -> jax.Array:
        def carry(c: jax.Array) -> jax.Array:
            return step(params, {**s_prev, "c": c}, x_t)[0]["c"]

        return v * jax.jvp(carry, (s_prev["c"],), (v,))[1]

    c = before["c"][0]
    signs = jax.random.rademacher(jax.random.key(0), c.shape, c.dtype)
    across = jax.vmap(one, in_axes=(0, 0, None))
    return across(before, x, jnp.ones_like(c)), across(before, x, signs)


@partial(jax.jit, static_argnums=0)
def measure_engine(
    cell: Cell, params: CellParams, state: Any, x: jax.Array, d_h: jax.Array
) -> dict[str, Any]:
    """What needs the gates of one of our cells and the engine's tape."""
    z = project(x, params.w_x, params.b)
    _, trace = run_forward(cell, params.w_h, params.vectors, state, z, None)
    injected = inject_at(x.shape[0], x.shape[0] - 1, d_h)
    flow = pull_back_log(cell, params, trace, injected)
    paths = measure_paths(cell, params, trace, injected)
    return {
        "carry": lag_curves(flow).c_total,
        "paths": PathNorms(paths.carried.log_norm[::-1], paths.recurrent.log_norm[::-1]),
        "truncation": None
        if cell.diagonal is not None
        else measure_truncation(temporal_gram(cell, trace, flow.delta)),
    }


@partial(jax.jit, static_argnums=0)
def measure_saturation(
    cell: Cell, params: CellParams, state: Any, x: jax.Array
) -> dict[str, Saturation] | None:
    """Of every gate of one of our cells; None where it has none."""
    _, gates = gate_activations(cell, params, state, x)
    return {name: gate_saturation(gate) for name, gate in gates.items()} or None
