"""Horizon phase diagram: how many steps back a gradient reaches, against how a layer starts.

LSTM: forget bias and input scale. RNN: gain of the recurrent weights and input scale. Where
the defaults of four libraries lie is marked, each with the horizon of that library's own draw.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.colors import ListedColormap, LogNorm

from experiments.plates import page
from experiments.plates.driven import drive
from experiments.plates.library_defaults import LIBRARIES, Library
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from lm.cells import CELLS
from lm.cells.cell import CellParams, forget_bias_vector, init_params
from lm.gradients.flow import measure_layer_lags
from lm.gradients.statistics import E_FOLD, FLOAT32_EPSILON, horizon

FORGET_BIASES = np.linspace(-2, 3, 11)
GAINS = np.linspace(0.25, 2.5, 16)
SCALES = np.logspace(-2, 1, 13)  # standard deviation of the inputs
SEEDS, ROWS = 2, 4
LEVELS = {"1/e": E_FOLD, "float32 epsilon": FLOAT32_EPSILON}
AXES = {"lstm": FORGET_BIASES, "rnn": GAINS}
MARKS = {"PyTorch": "o", "Keras": "s", "Flax": "^", "Haiku": "D"}


def measure(config: Config, done: Done) -> Arrays:
    """Per cell: "curves" [points, scales, lags], log norm, mean over seeds and rows; and of each
    library "NAME" [lags] with its own embeddings as inputs, "NAME/unit" with unit variance."""
    arrays: Arrays = {}
    for name, across in AXES.items():
        run = jax.jit(make_curves(config, name))
        plane = run(
            jax.jit(make_columns(config, name))(jnp.asarray(across, jnp.float32)),
            jnp.broadcast_to(jnp.asarray(SCALES, jnp.float32), (len(across), len(SCALES))),
        )
        arrays[f"{name}/curves"] = np.asarray(plane)
        libraries = [library for library in LIBRARIES if name in library.cells]
        drawn = [draw_library(config, name, library) for library in libraries]
        scales = [[library.embedding_std(config.hidden_size), 1.0] for library in libraries]
        found = run(jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn), jnp.asarray(scales))
        for library, (own, unit) in zip(libraries, np.asarray(found), strict=True):
            arrays[f"{name}/{library.name}"] = own
            arrays[f"{name}/{library.name}/unit"] = unit
        done()
    return arrays


def make_columns(config: Config, name: str) -> Any:
    """Forget biases or gains [A] -> parameters, leaves [A, S, ...]: the same draw in each."""
    cell, hidden = CELLS[name], config.hidden_size

    def columns(across: jax.Array) -> CellParams:
        drawn = lax.map(lambda key: init_params(key, cell, hidden, hidden), seed_keys())

        def change(value: jax.Array) -> CellParams:
            if cell.forget_gate is None:
                return drawn._replace(w_h=drawn.w_h * value)
            b = forget_bias_vector(cell, hidden, value, drawn.b.dtype)
            return drawn._replace(b=jnp.broadcast_to(b, drawn.b.shape))

        return jax.vmap(change)(across)

    return columns


def draw_library(config: Config, name: str, library: Library) -> CellParams:
    """A library's own draws, leaves [S, ...]."""
    drawn = [library.init(key, CELLS[name], config.hidden_size) for key in seed_keys()]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)


def seed_keys() -> jax.Array:
    return jax.random.split(jax.random.key(0), SEEDS)


def make_curves(config: Config, name: str) -> Any:
    """(params, leaves [M, S, ...]; input scales [M, n]) -> log ||dL_T/ds_{T-lag}|| of the joint
    state, mean over seeds and rows, [M, n, lags]. One compilation for all points."""
    cell = CELLS[name]

    def one_draw(key: jax.Array, params: CellParams, scales: jax.Array) -> jax.Array:
        def one_scale(scale: jax.Array) -> jax.Array:
            path = jax.random.fold_in(key, 1)
            driven = drive(path, cell, params, config.lags + 2, ROWS, scale=scale)
            return jnp.mean(measure_layer_lags(cell, params, *driven).state, axis=1)

        return jax.vmap(one_scale)(scales)  # all share W_h: one product for their rows

    def one_setting(setting: tuple[CellParams, jax.Array]) -> jax.Array:
        params, scales = setting
        curves = lax.map(lambda seed: one_draw(seed[0], seed[1], scales), (seed_keys(), params))
        return jnp.mean(curves, axis=0)

    return lambda params, scales: lax.map(one_setting, (params, scales))


def horizons(curves: np.ndarray, level: float) -> np.ndarray:
    """Steps beyond lag 1 at which each curve [..., lags] has fallen by `level` nats; inf: never."""
    flat = curves.reshape(-1, curves.shape[-1])
    return np.asarray([horizon(curve, level) for curve in flat]).reshape(curves.shape[:-1])


def describe(config: Config, arrays: Arrays) -> Found:
    rows = []
    for name in AXES:
        for library in (entry for entry in LIBRARIES if name in entry.cells):
            gates = len(CELLS[name].gates)
            row: dict[str, Any] = {
                "cell": name,
                "library": library.name,
                "forget_bias": library.forget_bias if name == "lstm" else None,
                "recurrent_gain": library.gain(gates),
                "input_gain": library.input_gain(gates),
                "embedding_std": library.embedding_std(config.hidden_size),
            }
            for suffix in ("", "/unit"):
                for label, level in LEVELS.items():
                    curve = arrays[f"{name}/{library.name}{suffix}"]
                    row[label + suffix] = horizon(curve, level)
            rows.append(row)
    reach = ", ".join(
        f"{row['library']} {say(row['float32 epsilon'], config)}"
        for row in rows
        if row["cell"] == "lstm"
    )
    return {
        "finding": "Forget bias sets how far an LSTM's gradient reaches, until loud inputs drown "
        f"it. Steps to float32 epsilon at the libraries' defaults: {reach}",
        "rows": rows,
    }


def say(steps: float, config: Config) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else f"> {config.lags}"


def draw(config: Config, arrays: Arrays) -> Any:
    """A row a level, a column a cell."""
    mosaic = [[f"{name} {level}" for name in AXES] for level in LEVELS]
    figure, axes = page.new_page(mosaic, 13.5, 10.5)
    rows = {(row["cell"], row["library"]): row for row in describe(config, arrays)["rows"]}
    for level, nats in LEVELS.items():
        image = None
        for name, across in AXES.items():
            axis = axes[f"{name} {level}"]
            curves = arrays[f"{name}/curves"]
            image = draw_plane(axis, across, curves, nats, config.lags)
            for library in (entry for entry in LIBRARIES if name in entry.cells):
                mark(axis, config, name, library, rows[name, library.name][level], image)
            title = "LSTM" if name == "lstm" else "tanh RNN"
            axis.set(
                title=f"{title}: steps until {level} is left",
                xlabel="forget bias" if name == "lstm" else "gain of the recurrent weights",
                ylabel="standard deviation of the\ninputs' pre-activations",
                yscale="log",
            )
            axis.grid(False)
        page.colour_bar(figure, image, axis, "horizon (steps beyond lag 1)")
    caption = (
        f"At the start, hidden size {config.hidden_size}, W_h a rotation gate by gate times the "
        f"gain (LSTM: 1); geometric mean of ||dL_T/ds||, s the joint state, over {SEEDS} seeds, "
        f"{ROWS} sequences each. Hatched: not within {config.lags} steps. Marks: what libraries "
        "do with words when nothing is said (their own embedding layer, D = H), coloured and "
        "numbered by the horizon of the library's own draw; placed by forget bias, input weights × "
        "embeddings, and gain (entries' standard deviation × √H). An LSTM's gain there: "
        f"{gains('lstm')}. Haiku's RNN is a ReLU network: not shown"
    )
    return page.dress(figure, describe(config, arrays)["finding"], caption)


def gains(name: str) -> str:
    gates = len(CELLS[name].gates)
    return ", ".join(f"{entry.name} {entry.gain(gates):.2g}" for entry in LIBRARIES)


def draw_plane(axis: Any, across: np.ndarray, curves: np.ndarray, nats: float, lags: int) -> Any:
    """The heat map with contours; hatched where the horizon lies beyond the lags measured."""
    steps = horizons(curves, nats).T  # [scales, across]
    least = 1 if nats == E_FOLD else 8
    beyond = ~np.isfinite(steps)
    image = axis.pcolormesh(
        across, SCALES, np.ma.masked_where(beyond, np.maximum(steps, 0.1)),
        norm=LogNorm(least, lags), cmap="cividis", shading="nearest",
    )  # fmt: skip
    axis.pcolor(
        across, SCALES, np.ma.masked_where(~beyond, np.ones(beyond.shape)),
        cmap=ListedColormap(["white"]), shading="nearest", hatch="///", linewidth=0,
    )  # fmt: skip
    levels = (2, 5, 20) if nats == E_FOLD else (50, 100, 200)
    lines = axis.contour(
        across, SCALES, np.log(np.where(beyond, 2.0 * lags, np.maximum(steps, 0.1))),
        levels=np.log(levels), colors="white", linewidths=1,
    )  # fmt: skip
    axis.clabel(lines, fmt=lambda log: f"{np.exp(log):.0f}", fontsize=9)
    axis.set(xlim=(across[0], across[-1]), ylim=(SCALES[0], SCALES[-1]))
    return image


def mark(axis: Any, config: Config, name: str, library: Library, steps: float, image: Any) -> None:
    """One library's default, coloured by its own horizon."""
    gates = len(CELLS[name].gates)
    at = library.forget_bias if name == "lstm" else library.gain(gates)
    scale = library.input_gain(gates) * library.embedding_std(config.hidden_size)
    left = name == "lstm" and library.forget_bias == 0  # away from the others' labels
    colour = image.cmap(image.norm(steps)) if np.isfinite(steps) else "white"
    axis.plot(
        at, scale, MARKS[library.name], markersize=12, color=colour, markeredgecolor="#D55E00",
        markeredgewidth=2.2, zorder=5,
    )  # fmt: skip
    axis.annotate(
        f"{library.name}: {say(steps, config)}", (at, scale), xytext=(-12 if left else 12, 0),
        textcoords="offset points", va="center", ha="right" if left else "left", fontsize=9.5,
        fontweight="bold", color="black",
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


PLATE = Plate(measure, describe, draw, parts=lambda config: len(AXES))
