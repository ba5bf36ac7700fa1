"""Singular spectrum: every singular value of ds_T/ds_{T - lag}, over hundreds of nats.

A plain SVD of the multiplied-out product knows nothing below its largest value times the
floating point epsilon, 36 nats in float64. Sweeps of QR over the factors know all of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.plates import page
from experiments.plates.driven import drive
from experiments.plates.gram import full_name
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.gradients.jacobian import singular_spectrum, state_jacobians
from lm.recurrence import as_step

LONGEST = 240  # lags; the sweeps' time grows with it
POINTS = 9  # lags at which the spectrum is taken
EPSILON = float(np.log(np.finfo(np.float64).eps))


def measure(config: Config, done: Done) -> Arrays:
    """Per cell: "swept" and "plain" log singular values [lags, N], descending; "lags"."""
    longest = min(LONGEST, config.lags)
    lags = np.unique(np.linspace(1, longest, POINTS).astype(int))
    arrays: Arrays = {"lags": lags}
    for name in config.cells:
        with jax.enable_x64(True):
            jacobians = jax.jit(make_jacobians(config, name, longest))()
            arrays[f"{name}/swept"] = np.asarray(
                jax.jit(singular_spectrum)(jacobians, jnp.asarray(lags))
            )
        arrays[f"{name}/plain"] = plain_spectrum(np.asarray(jacobians), lags)
        done()
    return arrays


def make_jacobians(config: Config, name: str, time: int) -> Any:
    """() -> the joint state's Jacobians along one path, float64 [T, N, N]."""
    cell, hidden = CELLS[name], config.hidden_size // 2

    def jacobians() -> jax.Array:
        key_params, key_path = jax.random.split(jax.random.key(0))
        params = init_params(
            key_params, cell, hidden, hidden, forget_bias=config.forget_bias, dtype=jnp.float64
        )
        driven = drive(key_path, cell, params, time, settle=50)
        return state_jacobians(as_step(cell), params, driven.state, driven.x)[:, 0]

    return jacobians


def plain_spectrum(jacobians: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """What a float64 SVD of the product says, [lags, N] nats."""
    found, product = [], np.eye(jacobians.shape[-1])
    for lag, jacobian in enumerate(jacobians, start=1):
        product = jacobian @ product
        if lag in lags:
            with np.errstate(divide="ignore"):
                found.append(np.log(np.linalg.svd(product, compute_uv=False)))
    return np.stack(found)


def describe(config: Config, arrays: Arrays) -> Found:
    rows: list[dict[str, Any]] = []
    for name in config.cells:
        swept, plain = arrays[f"{name}/swept"][-1], arrays[f"{name}/plain"][-1]
        with np.errstate(invalid="ignore"):
            error = np.nanmax(np.abs(swept - plain)[np.isfinite(swept - plain)], initial=0)
        rows.append(
            {
                "cell": name,
                "top_nats": float(swept[0]),
                "bottom_nats": float(swept[-1]),
                "plain_bottom_nats": float(plain[-1]),
                "largest_error_of_plain_svd_in_nats": float(error),
                "state_size": len(swept),
            }
        )
    ranges = ", ".join(
        f"{row['top_nats'] - row['bottom_nats']:.0f} ({CELLS[row['cell']].name})" for row in rows
    )
    worst = max(row["largest_error_of_plain_svd_in_nats"] for row in rows)
    finding = (
        f"Nats that the singular values span {arrays['lags'][-1]} steps back: {ranges}; "
        f"a plain SVD is wrong by up to {worst:.0f}"
    )
    return {"finding": finding, "rows": rows}


def draw(config: Config, arrays: Arrays) -> Any:
    """A panel a cell: the true fan, and what a plain SVD makes of it."""
    figure, axes = page.new_page(
        [list(config.cells)], 2 + 4.3 * len(config.cells), 6.6, sharey=True
    )
    lags = arrays["lags"]
    for name in config.cells:
        axis = axes[name]
        swept, plain = (arrays[f"{name}/{kind}"] * page.LOG10 for kind in ("swept", "plain"))
        axis.fill_between(
            lags, swept[:, 0], swept[:, 0] + EPSILON * page.LOG10, color="#E69F00", alpha=0.35,
            linewidth=0, label="a plain SVD's reach: largest × float64 epsilon",
        )  # fmt: skip
        lines = axis.plot(lags, swept, color="#56B4E9", linewidth=1)
        lines[0].set_label("all of them, by sweeps of QR")
        axis.plot(lags, swept[:, 0], color="black", linewidth=2.2, label="largest")
        axis.plot(lags, swept[:, -1], color="#0072B2", linewidth=2.2, label="smallest")
        axis.plot(
            lags, plain[:, -1], color="#D55E00", linewidth=2.4, linestyle=(0, (4, 2)),
            label="smallest, says a plain SVD of the product",
        )  # fmt: skip
        axis.set(
            title=f"{full_name(config, name)}\n({swept.shape[1]} numbers in the state)",
            xlabel="lag (steps)",
        )
    first = axes[config.cells[0]]
    first.set_ylabel(r"singular values of $\partial s_T/\partial s_{T-\mathrm{lag}}$ (joint state)")
    deepest = min(config.cells, key=lambda name: arrays[f"{name}/swept"].min())
    figures.label_log10(axes[deepest])  # the panels share one axis
    first.legend(loc="lower left", fontsize=9.5)
    caption = (
        f"At the start, hidden size {config.hidden_size // 2}, inputs N(0, 1), one sequence, seed "
        "0, float64; an LSTM's state is c and h, and its h half passes on next to nothing but what "
        "c holds: half of its directions end within a few steps"
    )
    return page.dress(figure, describe(config, arrays)["finding"], caption)


PLATE = Plate(measure, describe, draw, parts=lambda config: len(config.cells))
