"""Temporal Gram matrix: how the steps' parts of dL_T/dW_h lie to each other, and their shares.

dL_T/dW_h = sum over t of G_t. The Gram matrix <G_t, G_s> says which steps make the gradient and
whether they pull together; a row's sum over the whole is that step's share. The whole is here
that of the last LAGS steps: what a longer memory adds from before them is not counted.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import figures
from experiments.plates import page
from experiments.plates.driven import drive, pull_back_last
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.gradients.components import Gram, lag_shares, temporal_gram
from lm.gradients.statistics import seed_band

LAGS = 64  # steps that are looked at; what lies further back is left out of sums and shares
SHOWN = 24  # lags of a heat map
BARS = 10  # lags of the bars
FLOOR = -8  # log10 of the smallest magnitude that is told from 0


def measure(config: Config, done: Done) -> Arrays:
    """Per cell: "cosine" [T, T] and "log" [T] of seed 0, newest first; "shares" [S, T]."""
    arrays: Arrays = {}
    for name in config.cells:
        gram, shares = jax.jit(make_measure(config, name))(jnp.arange(config.seeds))
        arrays[f"{name}/log"] = np.asarray(gram.log[0, ::-1], np.float64)
        arrays[f"{name}/cosine"] = np.asarray(gram.cosine[0, ::-1, ::-1], np.float64)
        arrays[f"{name}/shares"] = np.asarray(shares, np.float64)
        done()
    return arrays


def check(config: Config) -> None:
    """Raise ValueError for a cell without recurrent weights."""
    without = [name for name in config.cells if CELLS[name].diagonal is not None]
    if without:
        raise ValueError(
            f"figures has gram, of dL/dW_h, and cells {', '.join(without)}, which have no W_h; "
            "wanted figures without gram, or cells that have one"
        )


def make_measure(config: Config, name: str) -> Any:
    """Seeds [S] -> (Gram of each, shares [S, T])."""
    cell = CELLS[name]

    def one(seed: jax.Array) -> tuple[Gram, jax.Array]:
        key_params, key_path = jax.random.split(jax.random.key(seed))
        size = config.hidden_size
        params = init_params(key_params, cell, size, size, forget_bias=config.forget_bias)
        driven = drive(key_path, cell, params, LAGS, settle=LAGS)
        gram = temporal_gram(cell, *pull_back_last(cell, params, driven))
        return gram, lag_shares(gram)

    return lambda seeds: lax.map(one, seeds)


def magnitudes(arrays: Arrays, name: str) -> np.ndarray:
    """log10 of |<G_t, G_s>| relative to ||G_T||^2, newest first [T, T]."""
    log = arrays[f"{name}/log"] - arrays[f"{name}/log"][0]
    with np.errstate(divide="ignore"):
        cosine = np.log10(np.abs(arrays[f"{name}/cosine"]))
    return cosine + (log[:, None] + log[None]) * page.LOG10


def describe(config: Config, arrays: Arrays) -> Found:
    rows = []
    for name in config.cells:
        shares = arrays[f"{name}/shares"].mean(axis=0)
        rows.append(
            {
                "cell": name,
                "shares": shares[:BARS].tolist(),
                "beyond_20": float(shares[21:].sum()),
                "steps_for_90_percent": int(np.argmax(np.cumsum(shares) >= 0.9)) + 1,
            }
        )
    said = ", ".join(
        f"{row['steps_for_90_percent']} ({full_name(config, row['cell'])})" for row in rows
    )
    return {
        "finding": f"Steps that make up 90 % of what the last {window(arrays)} add to the "
        f"recurrent weights' gradient: {said}",
        "rows": rows,
    }


def window(arrays: Arrays) -> int:
    """Steps that the shares are of."""
    return int(next(value for key, value in arrays.items() if key.endswith("/shares")).shape[-1])


def full_name(config: Config, name: str) -> str:
    """The cell, with its forget bias where it has one."""
    bias = f", forget bias {config.forget_bias:g}" if CELLS[name].forget_gate else ""
    return CELLS[name].name + bias


def draw(config: Config, arrays: Arrays) -> Any:
    """A column of two heat maps a cell, and the shares by lag."""
    cells = config.cells
    mosaic = [
        [f"cosine {name}" for name in cells] + ["shares"],
        [f"size {name}" for name in cells] + ["shares"],
    ]
    figure, axes = page.new_page(
        mosaic, 5 + 3.6 * len(cells), 8, width_ratios=[1] * len(cells) + [1.25]
    )
    extent = (-0.5, SHOWN - 0.5, SHOWN - 0.5, -0.5)
    for name in cells:
        cosine = axes[f"cosine {name}"].imshow(
            arrays[f"{name}/cosine"][:SHOWN, :SHOWN], cmap="PuOr_r", vmin=-1, vmax=1, extent=extent
        )
        size = axes[f"size {name}"].imshow(
            magnitudes(arrays, name)[:SHOWN, :SHOWN], cmap="cividis", vmin=FLOOR, vmax=0,
            extent=extent,
        )  # fmt: skip
        axes[f"cosine {name}"].set_title(full_name(config, name), fontsize=11)
        for kind in ("cosine", "size"):
            axis = axes[f"{kind} {name}"]
            axis.set(
                xlabel="lag T − s (steps)", xticks=range(0, SHOWN, 5), yticks=range(0, SHOWN, 5)
            )
            axis.grid(False)
    for kind, label in (("cosine", "direction"), ("size", "magnitude")):
        axes[f"{kind} {cells[0]}"].set_ylabel(f"{label}: lag T − t (steps)")
    last = cells[-1]
    page.colour_bar(
        figure, cosine, axes[f"cosine {last}"], r"cosine of $G_t$ and $G_s$", shrink=0.8
    )
    bar = page.colour_bar(
        figure, size, axes[f"size {last}"], r"$|\langle G_t, G_s\rangle| \,/\, \Vert G_T\Vert^2$",
        shrink=0.8, extend="min",
    )  # fmt: skip
    ticks = range(FLOOR, 1, 2)
    bar.set_ticks(list(ticks), labels=[f"$10^{{{tick}}}$" for tick in ticks])
    draw_shares(axes["shares"], config, arrays)
    caption = (
        f"$G_t = h_{{t-1}}\\delta_t^T$: what step t adds to the gradient of $W_h$ from a loss at "
        f"the last step T. At the start, hidden size {config.hidden_size}, inputs N(0, 1). Heat "
        f"maps: one sequence, seed 0. Shares: of the sum over lags 0 to {window(arrays) - 1}, "
        "what lies further back is left out; arithmetic mean over "
        f"{config.seeds} seeds with 95 % t intervals"
    )
    return page.dress(figure, describe(config, arrays)["finding"], caption)


def draw_shares(axis: Any, config: Config, arrays: Arrays) -> None:
    """Each lag's share of dL_T/dW_h, bars side by side."""
    width = 0.8 / len(config.cells)
    lags, last = np.arange(BARS), window(arrays) - 1
    for index, name in enumerate(config.cells):
        band = seed_band(arrays[f"{name}/shares"][:, :BARS])
        beyond = arrays[f"{name}/shares"][:, BARS:].sum(axis=1).mean()
        axis.bar(
            lags + (index - (len(config.cells) - 1) / 2) * width, band.mean, width,
            yerr=None if np.isnan(band.low).any() else band.high - band.mean,
            color=figures.colour(name, index),
            label=f"{CELLS[name].name}; lags {BARS} to {last}: {beyond:.1g}",
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )  # fmt: skip
    axis.set(
        title=r"Each lag's share of $\partial L_T/\partial W_h$",
        xlabel="lag (steps)",
        ylabel=f"share (lags 0 to {last} sum to 1)",
        xticks=lags,
    )
    axis.legend(loc="upper right")


PLATE = Plate(measure, describe, draw, parts=lambda config: len(config.cells), check=check)
