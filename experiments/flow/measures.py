"""The measures that gradient_flow takes, by name: each a function of a Subject, compiled together.

What a measure returns for one network is stacked over seeds and saved under its names; natural
logs of norms throughout, B the rows (stretches of text) and T the steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.flow.subjects import Subject, cast
from lm import model
from lm.cells import CELLS
from lm.cells.cell import Cell
from lm.config import ModelConfig
from lm.gradients import components, gates, paths, sensitivity
from lm.gradients.context import CHANGES, Change, measure_context
from lm.gradients.flow import inject_at, lag_curves, measure_layer_lengths, pull_back_log
from lm.gradients.jacobian import product_log_norms, singular_spectrum, state_jacobians
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.recurrence import as_step, project, run_forward
from lm.scans import Trace

JACOBIAN_ROWS = 2  # rows whose Jacobians, N x N at every step, are multiplied
DIRECTIONS = 8  # random directions in parameter space that sensitivity averages over
TAU_EDGES = tuple(2.0 ** (k / 2) for k in range(25))  # 1, the least there is, to 4096 steps

CONTEXT_ROWS = 64  # stretches that context use is averaged over
CONTEXT_KEPT = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500)

Arrays = dict[str, np.ndarray]


class Setting(NamedTuple):
    """What is the same for all seeds of a cell: static."""

    cell: Cell
    lengths: tuple[int, ...]


Found = dict[str, jax.Array]


def lags(setting: Setting, subject: Subject) -> Found:
    """Measure 1: ||dL_T/ds_{T - lag}||, [lags, B]."""
    trace, injected = run_layer(setting, subject)
    curves = lag_curves(pull_back_log(setting.cell, subject.layer, trace, injected))
    names = {"h": "lag_h", "state": "lag_state", "c": "lag_c", "c_total": "lag_c_total"}
    return {names[field]: value for field, value in curves._asdict().items() if value is not None}


def lengths(setting: Setting, subject: Subject) -> Found:
    """Measure 5: ||dL_T/dW_h|| against T, [lengths, B]; nothing of a cell without W_h."""
    if setting.cell.diagonal is not None:
        return {}
    state = zero_state(setting, subject)
    return {
        "length_w": measure_layer_lengths(
            setting.cell, subject.layer, state, subject.x, subject.d_h, setting.lengths
        )
    }


def shares(setting: Setting, subject: Subject) -> Found:
    """Measures 4 and 13: each lag's share of dL_T/dW_h, and what truncation loses. [lags, B].

    Nothing of a cell without W_h.
    """
    if setting.cell.diagonal is not None:
        return {}
    trace, injected = run_layer(setting, subject)
    flow = pull_back_log(setting.cell, subject.layer, trace, injected)

    def one_row(row: jax.Array) -> tuple[jax.Array, ...]:
        of_row = (trace.h, trace.read, flow.delta)
        h, read, delta = jax.tree.map(lambda leaf: leaf[:, row, None], of_row)
        one = Trace(trace.h_first[row, None], h, tape=None, mask=None, read=read)
        gram = components.temporal_gram(setting.cell, one, delta)
        lost = components.measure_truncation(gram)
        return components.lag_shares(gram), gram.log[::-1], lost.cosine, lost.log_ratio

    names = ("share", "component", "truncation_cosine", "truncation_ratio")
    found = jax.lax.map(one_row, jnp.arange(subject.x.shape[1]))
    return {name: value.T for name, value in zip(names, found, strict=True)}


def jacobian(setting: Setting, subject: Subject) -> Found:
    """Measure 2: spectral and Frobenius norm of ds_T/ds_{T - lag}, lags 0 .. T, [T + 1, rows]."""
    norms = product_log_norms(jacobians_of(setting, subject, JACOBIAN_ROWS))
    return {"jacobian_spectral": norms.spectral, "jacobian_frobenius": norms.frobenius}


def singular(setting: Setting, subject: Subject) -> Found:
    """Measure 6: log singular values of ds_T/ds_0 at the lengths, first row, [lengths, N]."""
    found = jacobians_of(setting, subject, 1)[:, 0]
    return {"singular": singular_spectrum(found, jnp.asarray(setting.lengths))}


def lyapunov(setting: Setting, subject: Subject) -> Found:
    """Measure 7: Lyapunov exponents of the joint state, nats per step, [rows, N]."""
    x = subject.x[:, :JACOBIAN_ROWS]
    state = setting.cell.init_state(x.shape[1], subject.layer.w_h.shape[0], x.dtype)
    step = as_step(setting.cell)
    warmup = len(x) // 4
    return {"lyapunov": lyapunov_spectrum(step, subject.layer, state, x, warmup=warmup)}


def gate_use(setting: Setting, subject: Subject) -> Found:
    """Measures 9 and 10: saturation of each gate [H], and shares of the forget gate's tau."""
    state = zero_state(setting, subject)
    _, found = gates.gate_activations(setting.cell, subject.layer, state, subject.x)
    measured: Found = {}
    for name in [name for name in found if name not in ("g", "n", "h")]:
        saturation = gates.gate_saturation(found[name])
        measured |= {f"gate_{name}_low": saturation.low, f"gate_{name}_high": saturation.high}
    if "f" in found:
        tau = gates.time_scale(found["f"])
        measured["tau"] = gates.histogram_shares(tau, jnp.asarray(TAU_EDGES, tau.dtype))
        measured["lag_carousel"] = gates.carousel_log_norms(found["f"]).mean(axis=2)
    return measured


def split(setting: Setting, subject: Subject) -> Found:
    """Measure 16: the gradient along the elementwise carry, and through W_h, by lag, [lags, B]."""
    trace, injected = run_layer(setting, subject)
    found = paths.measure_paths(setting.cell, subject.layer, trace, injected)
    return {
        "path_carried": found.carried.log_norm[::-1],
        "path_recurrent": found.recurrent.log_norm[::-1],
    }


def forward_sensitivity(setting: Setting, subject: Subject) -> Found:
    """Measure 15: log of the root of the mean of ||(ds_t/dW_h) v||^2 over random v, [T, B].

    An estimate of ||ds_t/dW_h||_F. Nothing of a cell without W_h.
    """
    if setting.cell.diagonal is not None:
        return {}
    state = zero_state(setting, subject)
    w_h = subject.layer.w_h
    nothing = jax.tree.map(jnp.zeros_like, subject.layer)

    def one(key: jax.Array) -> jax.Array:
        direction = nothing._replace(w_h=jax.random.normal(key, w_h.shape, w_h.dtype))
        return sensitivity.state_sensitivity(
            as_step(setting.cell), subject.layer, state, subject.x, direction
        )

    logs = jax.lax.map(one, jax.random.split(jax.random.key(0), DIRECTIONS))
    return {"sensitivity": (jax.nn.logsumexp(2 * logs, axis=0) - jnp.log(DIRECTIONS)) / 2}


def omega(found: Found) -> Found:
    """Measure 14: Pascanu's Omega per lag, [lags - 1, B], of the whole state's lag curve."""
    return {"omega": sensitivity.pascanu_omega(found["lag_state"])}


Measure = Callable[[Setting, Subject], Found]
# In the order of gradient_flow.MEASURES; `context`, which needs the whole model, is beside it.
TAKEN: dict[str, Measure] = {
    "lags": lags,
    "lengths": lengths,
    "shares": shares,
    "jacobian": jacobian,
    "singular": singular,
    "lyapunov": lyapunov,
    "gates": gate_use,
    "paths": split,
    "sensitivity": forward_sensitivity,
}
# Those that follow from what the measure `lags`, which is always taken, has found.
DERIVED: dict[str, Callable[[Found], Found]] = {"omega": omega}


def zero_state(setting: Setting, subject: Subject) -> Any:
    hidden = subject.layer.w_h.shape[0]
    return setting.cell.init_state(subject.x.shape[1], hidden, subject.x.dtype)


def run_layer(setting: Setting, subject: Subject) -> tuple[Any, Any]:
    """(Trace, cotangent of the loss at the last step) of a subject."""
    layer = subject.layer
    z = project(subject.x, layer.w_x, layer.b)
    state = zero_state(setting, subject)
    _, trace = run_forward(setting.cell, layer.w_h, layer.vectors, state, z, None)
    time = subject.x.shape[0]
    return trace, inject_at(time, time - 1, subject.d_h[-1])


def jacobians_of(setting: Setting, subject: Subject, rows: int) -> jax.Array:
    """J_t of the first rows, [T, rows, N, N]."""
    x = subject.x[:, :rows]
    state = setting.cell.init_state(x.shape[1], subject.layer.w_h.shape[0], x.dtype)
    return state_jacobians(as_step(setting.cell), subject.layer, state, x)


def compile_measures(
    config: Any, network: ModelConfig, subject_of: Callable[[Any], Subject]
) -> Callable[[Any], Arrays]:
    """seeds -> every measure of every seed, [S, ...] each, in one compiled call.

    Args:
      config: of gradient_flow: measures, at_lengths, windows, dtype.
      subject_of: what `seeds`, a pytree with a leading axis, holds of one seed -> Subject.
    """
    setting = Setting(CELLS[network.cell], config.at_lengths)

    def one_seed(seed: Any) -> Found:
        subject = cast(subject_of(seed), config.dtype)
        found: Found = {"input_rms": jnp.sqrt(jnp.mean(subject.x**2))}
        for name, take in TAKEN.items():
            if name in config.measures:
                found |= take(setting, subject)
        for name, derive in DERIVED.items():
            if name in config.measures:
                found |= derive(found)
        return found

    width = config.windows * max(network.layer_sizes)
    compiled = jax.jit(lambda seeds: map_seeds(one_seed, seeds, width))

    def measure(seeds: Any) -> Arrays:
        with jax.enable_x64(config.dtype == "float64"):
            return {name: np.asarray(value) for name, value in compiled(seeds).items()}

    return measure


def measure_context_use(
    config: ModelConfig, seeds: list[model.Params], inputs: np.ndarray, targets: np.ndarray
) -> Arrays:
    """Measure 11 for every kind of change: mean nats per token, "context_<change>" [S, kept].

    Args:
      inputs: stretches of text, int [W, N].
      targets: the token after each, int [N].
    """
    rows = min(inputs.shape[1], CONTEXT_ROWS)
    tokens, last = jnp.asarray(inputs[:, :rows]), jnp.asarray(targets[:rows])
    kept = [count for count in CONTEXT_KEPT if count < len(tokens)] + [len(tokens)]
    arrays = {"context_kept": np.tile(kept, (len(seeds), 1))}
    for name, change in CHANGES.items():
        if name == "replace" and rows < 2:
            continue

        @jax.jit
        def mean_nats(params: model.Params, change: Change = change) -> jax.Array:
            key = jax.random.key(0)
            nats = measure_context(config, params, tokens, last, jnp.asarray(kept), change, key)
            return nats.mean(axis=1)

        arrays[f"context_{name}"] = np.stack([np.asarray(mean_nats(params)) for params in seeds])
    return arrays


def map_seeds(one_seed: Callable[[Any], Any], seeds: Any, width: int) -> Any:
    """`one_seed` of every seed in one compiled call.

    On a CPU one after another, unless the layers are small: at H = 128 and 16 rows lax.map is
    twice as fast as vmap, at H = 16 and one row four times slower. Elsewhere side by side.

    Args:
      seeds: a pytree with a leading axis of seeds.
      width: numbers in the hidden state, rows times H.
    """
    if jax.default_backend() == "cpu" and width >= 512:
        return jax.lax.map(one_seed, seeds)
    return jax.vmap(one_seed)(seeds)
