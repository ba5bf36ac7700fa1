"""Certificate: reverse mode, forward mode and, where there is one, the analytic rate agree.

The slope of log ||dL_T/ds_t|| against lag comes from one backward pass of one loss; the top
Lyapunov exponent from tangents pushed forward, with no loss at all. They share no code but the
cell's equations, and one law says that they are the same number.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import figures
from experiments.laws.layer import LINEAR
from experiments.plates import page
from experiments.plates.driven import Driven, drive
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from lm.cells import CELLS
from lm.cells.cell import Cell, CellParams, init_params
from lm.gradients.flow import measure_layer_lags
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.gradients.statistics import seed_band, slope_per_step
from lm.recurrence import as_step

TOLERANCE = 0.01  # nats per step
FORGET_BIASES = (0.0, 1.0, 3.0)
RHO = 0.9  # of the linear RNN W_h = rho Q
FORCED_BIAS = 2.0  # of the LSTM whose gates see nothing but their bias


class Network(NamedTuple):
    """One line of the figure."""

    label: str
    cell: Cell
    init: Callable[[jax.Array, int], CellParams]  # (key, H)
    exact: float  # nats per step; NaN where no formula is known
    line: dict[str, Any]
    marker: str = "o"


def networks(config: Config) -> list[Network]:
    """Every network that the figure compares, in the order of its legend."""
    found = [network for name in config.cells for network in of_cell(config, name)]
    dashed = {"color": "#000000", "linewidth": 1.4}
    return [
        *found,
        Network(
            f"linear RNN, $W_h = {RHO:g}\\,Q$", LINEAR, init_linear, float(np.log(RHO)),
            {**dashed, "linestyle": "-"}, "s",
        ),
        Network(
            f"LSTM, gates forced, bias {FORCED_BIAS:g}", CELLS["lstm"], init_forced,
            -float(np.log1p(np.exp(-FORCED_BIAS))), {**dashed, "linestyle": (0, (5, 2))}, "s",
        ),
    ]  # fmt: skip


def of_cell(config: Config, name: str) -> list[Network]:
    """A cell as it starts: once, or at several forget biases and with chrono initialisation."""
    cell = CELLS[name]
    nothing = float("nan")
    index = config.cells.index(name)
    colour = figures.colour(name, index)

    def init(key: jax.Array, hidden: int, **options: Any) -> CellParams:
        return init_params(key, cell, hidden, hidden, **options)

    if cell.forget_gate is None:
        return [Network(cell.name, cell, init, nothing, {"color": colour})]
    shades = page.tints(colour, len(FORGET_BIASES))
    found = [
        Network(
            f"{cell.name}, forget bias {bias:g}",
            cell,
            partial(init, forget_bias=bias),
            nothing,
            {"color": shade},
        )
        for bias, shade in zip(FORGET_BIASES, shades, strict=True)
    ]
    chrono = Network(
        f"{cell.name}, chrono {config.lags}",
        cell,
        partial(init, chrono=config.lags),
        nothing,
        {"color": colour, "linestyle": (0, (6, 1.5, 1.2, 1.5))},
        "D",
    )
    return [*found, chrono]


def init_linear(key: jax.Array, hidden: int) -> CellParams:
    """W_h = rho Q: every singular value is rho, so ||dL_T/dh_t|| = rho^lag ||dL_T/dh_T||."""
    return init_params(key, LINEAR, hidden, hidden, recurrent_gain=RHO)


def init_forced(key: jax.Array, hidden: int) -> CellParams:
    """W_x = W_h = 0: the carousel alone, dc_T/dc_t = sigmoid(b_f)^lag."""
    params = init_params(key, CELLS["lstm"], hidden, hidden, forget_bias=FORCED_BIAS)
    return params._replace(w_x=jnp.zeros_like(params.w_x), w_h=jnp.zeros_like(params.w_h))


def measure(config: Config, done: Done) -> Arrays:
    """Per network: "curve" log norms [S, lags], "slope" and "exponent" nats per step [S]."""
    arrays: Arrays = {}
    compiled: dict[Cell, tuple[Any, Any, Any]] = {}  # networks of one cell share a compilation
    keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    for number, network in enumerate(networks(config)):
        if network.cell not in compiled:
            compiled[network.cell] = compile_cell(config, network.cell)
        path, reverse, forward = compiled[network.cell]
        params = jax.jit(partial(init_seeds, network, config.hidden_size))(keys)
        driven = path(keys, params)
        curve = np.asarray(reverse(params, driven), np.float64)
        arrays[f"{number}/curve"] = curve
        arrays[f"{number}/slope"] = np.asarray(
            [slope_per_step(row, first=first_lag(config)) for row in curve]
        )
        arrays[f"{number}/exponent"] = np.asarray(forward(params, driven), np.float64)
        done()
    return arrays


def init_seeds(network: Network, hidden: int, keys: jax.Array) -> CellParams:
    """Parameters of every seed, leaves [S, ...].

    One after another: under vmap the gates' orthogonal draws are batched QRs side by side, which
    can wait for each other for ever in the CPU's thread pool (jaxlib 0.10, 2 cores).
    """
    return lax.map(lambda key: network.init(key, hidden), keys)


def compile_cell(config: Config, cell: Cell) -> tuple[Any, Any, Any]:
    """(the path, log norms [S, lags], top exponents [S]), each a program of its own."""

    def path(drawn: tuple[jax.Array, CellParams]) -> Driven:
        key, params = drawn
        key_path = jax.random.fold_in(key, 1)
        return drive(key_path, cell, params, config.lags + 1, settle=config.lags // 2)

    def reverse(drawn: tuple[CellParams, Driven]) -> jax.Array:
        params, driven = drawn
        return measure_layer_lags(cell, params, *driven).state[:, 0]

    def forward(drawn: tuple[CellParams, Driven]) -> jax.Array:
        params, driven = drawn
        # Where the tangents start they turn into the fastest direction, as the gradient does at
        # the other end of the path: as many steps are left out of both.
        top = lyapunov_spectrum(
            as_step(cell), params, driven.state, driven.x, exponents=1, warmup=first_lag(config)
        )
        return top[0, 0]

    programs = [
        jax.jit(lambda *drawn, one=one: lax.map(one, drawn)) for one in (path, reverse, forward)
    ]
    return programs[0], programs[1], programs[2]


def first_lag(config: Config) -> int:
    """Lags before which a gradient still turns into its slowest direction."""
    return config.lags // 10


def describe(config: Config, arrays: Arrays) -> Found:
    rows: list[dict[str, Any]] = []
    for number, network in enumerate(networks(config)):
        slopes, exponents = arrays[f"{number}/slope"], arrays[f"{number}/exponent"]
        slope, exponent, paired = map(seed_band, (slopes, exponents, slopes - exponents))
        rows.append(
            {
                "network": network.label,
                "slope": float(slope.mean),
                "slope_low": float(slope.low),
                "slope_high": float(slope.high),
                "exponent": float(exponent.mean),
                "exponent_low": float(exponent.low),
                "exponent_high": float(exponent.high),
                "exact": network.exact,
                "difference": float(paired.mean),
                "difference_half": float(paired.high - paired.mean),
            }
        )
    worst = max(abs(row["difference"]) for row in rows)
    verdict = "agree" if worst < TOLERANCE else "do NOT agree"
    finding = (
        f"Gradients sent back and tangents pushed forward {verdict}: slope and Lyapunov exponent "
        f"differ by at most {worst:.4f} nats per step (threshold {TOLERANCE:g})"
    )
    return {"finding": finding, "largest_difference": worst, "threshold": TOLERANCE, "rows": rows}


def draw(config: Config, arrays: Arrays) -> Any:
    """Curves with the exponents' lines; slope against exponent; their differences."""
    found = describe(config, arrays)
    figure, axes = page.new_page(
        [["curves", "plane"], ["curves", "differences"]], 13.5, 8.2, width_ratios=(1.25, 1)
    )
    lags = np.arange(config.lags + 1)
    for number, (network, row) in enumerate(zip(networks(config), found["rows"], strict=True)):
        curves = arrays[f"{number}/curve"]
        band = seed_band(curves - curves[:, 1:2])
        label = f"{network.label}:  {row['slope']:+.3f} | {row['exponent']:+.3f}"
        if np.isfinite(network.exact):
            label += f" | exact {network.exact:+.3f}"
        figures.plot_band(
            axes["curves"], lags[1:], *(part[1:] for part in band), label=label,
            **{"linewidth": 2.2, **network.line},
        )  # fmt: skip
        # The exponent's line, through the curve's middle.
        middle = config.lags // 2
        straight = band.mean[middle] + row["exponent"] * (lags[1:] - middle)
        axes["curves"].plot(
            lags[1:], straight * page.LOG10, color="white", linewidth=1.1, linestyle=(0, (2, 4))
        )
        draw_numbers(axes, number, network, row)
    axes["curves"].set(
        title="Lines: the gradient's norm. White dashes: the exponent's slope",
        xlabel="lag (steps)",
        ylabel=r"$\Vert\partial L_T/\partial s_{T-\mathrm{lag}}\Vert$ relative to lag 1 "
        "(joint state)",
    )
    figures.label_log10(axes["curves"])
    axes["curves"].legend(
        fontsize=8.5, loc="lower left", title="slope | exponent (nats per step)",
        title_fontsize=8.5, alignment="left",
    )  # fmt: skip
    finish_plane(axes["plane"])
    finish_differences(axes["differences"], [network.label for network in networks(config)])
    caption = (
        f"hidden size {config.hidden_size}, inputs N(0, 1); geometric mean over {config.seeds} "
        f"seeds, one sequence each, with 95 % t intervals; slopes fitted over lags "
        f"{first_lag(config)} to {config.lags}, exponents over as many steps of the same paths"
    )
    return page.dress(figure, found["finding"], caption)


def draw_numbers(axes: Any, number: int, network: Network, row: dict[str, Any]) -> None:
    """One network in the plane of slope and exponent, and its difference with an interval."""
    colour = network.line["color"]
    axes["plane"].errorbar(
        row["exponent"],
        row["slope"],
        xerr=[[row["exponent"] - row["exponent_low"]], [row["exponent_high"] - row["exponent"]]],
        yerr=[[row["slope"] - row["slope_low"]], [row["slope_high"] - row["slope"]]],
        marker=network.marker,
        color=colour,
        markersize=7,
        markeredgecolor="white",
    )
    half = row["difference_half"]
    axes["differences"].errorbar(
        row["difference"], -number, xerr=0 if np.isnan(half) else half,
        marker=network.marker, color=colour, markersize=6,
    )  # fmt: skip
    if np.isfinite(network.exact):
        axes["differences"].plot(
            row["slope"] - network.exact, -number, marker="|", markersize=16, color="#D55E00",
            markeredgewidth=2,
        )  # fmt: skip


def finish_plane(axis: Any) -> None:
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color="#999999", linewidth=1, zorder=0)
    axis.set(
        xlim=(low, high),
        xlabel="top Lyapunov exponent, forward mode (nats per step)",
        ylabel="slope, reverse mode\n(nats per step)",
        title="One number, two ways",
    )


def finish_differences(axis: Any, labels: list[str]) -> None:
    axis.axvspan(-TOLERANCE, TOLERANCE, color="#009E73", alpha=0.12, linewidth=0)
    axis.axvline(0, color="#999999", linewidth=1, zorder=0)
    axis.set_xticks(TOLERANCE * np.linspace(-1, 1, 5))
    axis.set_yticks([-number for number in range(len(labels))], labels, fontsize=8.5)
    axis.set(
        xlabel="slope − exponent (nats per step)",
        title=f"Within ±{TOLERANCE:g} (green); orange: slope − exact",
        ylim=(-len(labels) + 0.4, 0.6),
    )


PLATE = Plate(measure, describe, draw, parts=lambda config: len(networks(config)))
