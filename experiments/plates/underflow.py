"""Underflow map: where a float32 norm says 0 or inf of a gradient that is there.

A float32 norm squares first. Squares leave the normal numbers where entries pass 1.1e-19, and
what is denormal is flushed to 0 on a CPU (elsewhere they last to 3.7e-23); they are infinite
where entries pass 1.8e19. The entries themselves live on to 1.2e-38 and 3.4e38.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.plates import page
from experiments.plates.driven import Driven, drive
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params
from lm.gradients.flow import inject_at, pull_back_log
from lm.log_space import log_norm
from lm.recurrence import project, run_forward, unroll
from lm.scans import Trace

FLOAT32 = np.finfo(np.float32)
SIDES = {"vanishing": 1.0, "exploding": 3.0}  # gain of the recurrent weights
QUIET = 0.1  # input scale of the exploding network: louder inputs would saturate it
RNN = CELLS["rnn"]


def measure(config: Config, done: Done) -> Arrays:
    """Per side: "naive", a float32 norm [lags]; "entries" and "recovered", log norms [lags]."""
    arrays: Arrays = {}
    run, naive, pull_back = jax.jit(forward), jax.jit(autodiff), jax.jit(recover)
    for side in SIDES:
        params, driven = make_network(config, side)
        cotangents = naive(params, driven)
        arrays[f"{side}/naive"] = np.asarray(jnp.linalg.norm(cotangents, axis=-1))[::-1]
        arrays[f"{side}/entries"] = np.asarray(log_norm(cotangents))[::-1]
        path = (params, run(params, driven), driven.d_h)
        arrays[f"{side}/recovered"] = np.asarray(pull_back(*path))
        # The same path in both: an exploding network is chaotic, and float64 would walk another.
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), path)
            arrays[f"{side}/float64"] = np.asarray(pull_back(*wide))
        done()
    return arrays


def forward(params: CellParams, driven: Driven) -> Trace:
    z = project(driven.x, params.w_x, params.b)
    return run_forward(RNN, params.w_h, params.vectors, driven.state, z, None)[1]


def recover(params: CellParams, trace: Trace, d_h: jax.Array) -> jax.Array:
    """log ||dL_T/dh_{T-lag}|| by the backward pass in log space, [lags] nats."""
    time = trace.h.shape[0]
    flow = pull_back_log(RNN, params, trace, inject_at(time, time - 1, d_h))
    return flow.log_norms.h[::-1, 0]


def make_network(config: Config, side: str) -> tuple[CellParams, Driven]:
    """One tanh RNN with W_h = gain * Q and one sequence."""
    hidden = 2 * config.hidden_size
    key_params, key_path = jax.random.split(jax.random.key(0))
    params = init_params(key_params, RNN, hidden, hidden, recurrent_gain=SIDES[side])
    scale = 1.0 if side == "vanishing" else QUIET
    # Half again as far: the exploding network must pass 10^38 on the way.
    return params, drive(key_path, RNN, params, config.lags + config.lags // 2 + 1, scale=scale)


def autodiff(params: CellParams, driven: Driven) -> jax.Array:
    """dL_T/dh_t as any library computes it, in plain float32. [T, H]."""
    probe = jax.tree.map(
        lambda leaf: jnp.zeros((driven.x.shape[0], *leaf.shape), leaf.dtype), driven.state
    )

    def loss(probe: Any) -> jax.Array:
        last, _ = unroll(RNN, params, driven.state, driven.x, probe=probe)
        return jnp.vdot(last.h, driven.d_h)

    return jax.grad(loss)(probe).h[:, 0]


def describe(config: Config, arrays: Arrays) -> Found:
    vanishing, exploding = arrays["vanishing/naive"], arrays["exploding/naive"]
    zero = first(vanishing == 0)
    gone = first(np.isneginf(arrays["vanishing/entries"]))
    infinite = first(~np.isfinite(exploding))
    errors = {
        side: float(np.max(np.abs(arrays[f"{side}/recovered"] - arrays[f"{side}/float64"])))
        for side in SIDES
    }
    parts = []
    if zero is not None:
        until = "the end of the curve" if gone is None else f"lag {gone}"
        parts.append(
            f"a float32 norm says 0 from lag {zero}, where the gradient's entries live to {until}"
        )
    if infinite is not None:
        parts.append(f"of an exploding one it says inf from lag {infinite}")
    last = len(vanishing) - 1
    parts.append(f"in log space the curve goes on to lag {last}")
    finding = "; ".join(parts)
    return {
        "finding": finding[0].upper() + finding[1:],
        "naive_zero_from": zero,
        "entries_zero_from": gone,
        "naive_inf_from": infinite,
        "largest_error_in_nats": errors,
        "log10_at_last_lag": float(arrays["vanishing/recovered"][-1] * page.LOG10),
    }


def first(where: np.ndarray) -> int | None:
    return int(where.argmax()) if where.any() else None


def draw(config: Config, arrays: Arrays) -> Any:
    found = describe(config, arrays)
    figure, axes = page.new_page([["vanishing", "exploding"]], 13, 6.2)
    for side, axis in axes.items():
        draw_side(axis, side, arrays)
    mark_end(axes["vanishing"], found["naive_zero_from"], arrays["vanishing/naive"], "0")
    mark_end(axes["exploding"], found["naive_inf_from"], arrays["exploding/naive"], "inf")
    shade(axes["vanishing"], below=True)
    shade(axes["exploding"], below=False)
    axes["vanishing"].legend(loc="lower left", fontsize=9.5)
    axes["exploding"].legend(loc="upper left", fontsize=9.5)
    error = max(found["largest_error_in_nats"].values())
    caption = (
        f"tanh RNN, hidden size {2 * config.hidden_size}, one sequence, seed 0; the recovered "
        f"float32 curves lie within {error:.1g} nats of float64 at every lag. Squares below "
        "1.2e-38 are flushed to 0 on a CPU: the norm is lost below 1e-19 (without flushing "
        "below 4e-23)"
    )
    return page.dress(figure, found["finding"], caption)


def draw_side(axis: Any, side: str, arrays: Arrays) -> None:
    """The recovered curve, float64 as dots on it, and the naive norm as far as it gets."""
    recovered, naive = arrays[f"{side}/recovered"], arrays[f"{side}/naive"]
    lags = np.arange(len(recovered))
    axis.plot(
        lags, recovered * page.LOG10, color="#0072B2", linewidth=2.4,
        label="recovered: float32 in log space",
    )  # fmt: skip
    some = lags[:: max(1, len(lags) // 24)]
    axis.plot(
        some, arrays[f"{side}/float64"][some] * page.LOG10, "o", color="#0072B2", markersize=5,
        markerfacecolor="white", label="float64 in log space",
    )  # fmt: skip
    alive = (naive > 0) & np.isfinite(naive)
    axis.plot(
        lags[alive], np.log10(naive[alive]), color="#D55E00", linewidth=4.5, alpha=0.9,
        solid_capstyle="butt", zorder=3, label="naive: float32 jnp.linalg.norm",
    )  # fmt: skip
    quiet = "" if side == "vanishing" else f", input scale {QUIET:g}"
    axis.set(
        title=f"{side.capitalize()}: $W_h = {SIDES[side]:g}\\,Q${quiet or ', input scale 1'}",
        xlabel="lag (steps)",
        ylabel=r"$\Vert\partial L_T/\partial h_{T-\mathrm{lag}}\Vert$",
        xlim=(0, len(lags) - 1),
    )
    figures.label_log10(axis)


def shade(axis: Any, below: bool) -> None:
    """The bands in which the norm, and then the entries, are lost."""
    low, high = axis.get_ylim()
    if below:
        norm_ends, entries_end, edge = np.log10(FLOAT32.tiny) / 2, np.log10(FLOAT32.tiny), low
        names = "norm is 0, entries are not", "entries are 0 too"
    else:
        norm_ends, entries_end, edge = np.log10(FLOAT32.max) / 2, np.log10(FLOAT32.max), high
        names = "norm is inf, entries are not", "entries are inf too"
    for start, stop, colour, name in (
        (norm_ends, entries_end, "#E69F00", names[0]),
        (entries_end, edge, "#777777", names[1]),
    ):
        if below != (start > edge) and start != edge:
            continue
        stop = max(stop, edge) if below else min(stop, edge)
        axis.axhspan(min(start, stop), max(start, stop), color=colour, alpha=0.22, linewidth=0)
        axis.annotate(
            f"float32: {name}", (0.985, start), xycoords=("axes fraction", "data"),
            xytext=(0, -5 if below else 5), textcoords="offset points", ha="right",
            va="top" if below else "bottom", fontsize=9.5, color="#333333",
        )  # fmt: skip
    axis.set_ylim(low, high)


def mark_end(axis: Any, lag: int | None, naive: np.ndarray, says: str) -> None:
    """Where the naive norm stops being one."""
    if not lag:
        return
    at = (lag - 1, float(np.log10(naive[lag - 1])))
    axis.plot(*at, "X", color="#D55E00", markersize=11, markeredgecolor="white", zorder=4)
    axis.annotate(
        f"says {says} from lag {lag}", at, xytext=(14, 6 if says == "0" else -12),
        textcoords="offset points", color="#D55E00", fontsize=11, fontweight="bold",
    )  # fmt: skip


PLATE = Plate(measure, describe, draw, parts=lambda config: len(SIDES))
