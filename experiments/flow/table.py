"""What gradient_flow says in words and numbers: its table, its headline."""

from typing import Any

import numpy as np

from lm.cells import CELLS
from lm.gradients.statistics import E_FOLD, FLOAT32_EPSILON, horizon, slope_per_step

# Of text, by the level that it is cut at.
UNITS = {"word": "word", "whitespace": "word", "char": "character", "byte": "byte"}
STAGES = ("init", "trained")
Arrays = dict[str, np.ndarray]
Networks = list[dict[str, Any]]  # name, cell, model, corpus, as in a run's results.json


def measured(networks: Networks, arrays: Arrays) -> list[tuple[dict[str, Any], str]]:
    """Every (network, stage) that has results: none is `trained` where all seeds diverged."""
    return [
        (network, stage)
        for network in networks
        for stage in STAGES
        if f"{network['name']}/{stage}/lag_h" in arrays
    ]


def forget_gate_start(network: dict[str, Any]) -> str:
    """How the forget gate's bias starts, as figures say it; empty where there is no such gate."""
    if not CELLS[network["cell"]].forget_gate:
        return ""
    if network["model"].get("chrono"):
        return f"chrono {network['model']['chrono']}"
    return f"{network['model']['forget_bias']:g}"


def summarise(networks: Networks, arrays: Arrays) -> list[dict[str, Any]]:
    """A row for each network and stage: perplexity, slope, horizons."""
    rows = []
    for network, stage in measured(networks, arrays):
        name = network["name"]
        by_seed = arrays[f"{name}/{stage}/lag_h"].mean(axis=2)  # log of the geometric mean
        slopes = [slope_per_step(curve) for curve in by_seed]
        mean = by_seed.mean(axis=0)
        row: dict[str, Any] = {
            "cell": name,
            "forget_bias": forget_gate_start(network) or None,
            "stage": stage,
            "diverged_seeds": arrays.get(f"{name}/diverged", np.zeros(0, int)).tolist(),
            "input_rms": float(arrays[f"{name}/{stage}/input_rms"].mean()),
            "slope_per_step": float(np.mean(slopes)),
            "slope_sd": float(np.std(slopes, ddof=1)) if len(slopes) > 1 else None,
            "horizon_e": horizon(mean, E_FOLD),
            "horizon_epsilon": horizon(mean, FLOAT32_EPSILON),
        }
        for score in ("valid", "test", "loss"):
            values = arrays.get(f"{name}/{score}")
            if stage == "trained" and values is not None:
                row[score] = float(values.mean())
                row[f"{score}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return rows


def format_table(rows: list[dict[str, Any]], lags: int) -> str:
    """The table that the run prints."""
    width = max(6, *(len(row["cell"]) + 1 for row in rows))
    scored = "task loss" if any("loss" in row for row in rows) else "perplexity valid / test"
    lines = [
        f"{'cell':{width}}{'forget bias':>12}  {'':8}{scored:>25}"
        f"{'slope per step':>17}{'horizon 1/e':>13}{'epsilon':>9}"
    ]
    for row in rows:
        score = f"{row['valid']:.1f} / {row['test']:.1f}" if "valid" in row else ""
        if "loss" in row:
            score = f"{row['loss']:.4f}"
        slope = f"{row['slope_per_step']:.3f}"
        if row["slope_sd"] is not None:
            slope += f" ±{row['slope_sd']:.3f}"
        reach = [format_horizon(row[key], lags) for key in ("horizon_e", "horizon_epsilon")]
        lines.append(
            f"{row['cell']:{width}}{row['forget_bias'] or '-':>12}  {row['stage']:8}{score:>25}"
            f"{slope:>17}{reach[0]:>13}{reach[1]:>9}"
        )
    lines.append(
        "slope: natural log of ||dL_T/dh_t|| per step back, mean ± sd over seeds; horizons: steps\n"
        "beyond the first until the norm has fallen by 1/e, and by float32's epsilon (1.2e-7)"
    )
    return "\n".join(lines)


def format_horizon(steps: float, lags: int) -> str:
    """A horizon in steps; `>` where it lies beyond the lags measured, `-` where unknown."""
    if np.isnan(steps):
        return "-"
    return f"{steps:.1f}" if np.isfinite(steps) else f">{lags - 2}"


def headline(networks: Networks, arrays: Arrays, unit: str, lag: int = 50) -> str:
    """What the picture shows, in a sentence; of trained networks where there are any."""
    found = measured(networks, arrays)
    stage = "trained" if any(stage == "trained" for _, stage in found) else "init"
    shrunk = []
    for network in (network for network, at in found if at == stage):
        name = network["name"]
        mean = arrays[f"{name}/{stage}/lag_h"].mean(axis=(0, 2))
        lag = min(lag, len(mean) - 1)
        called = CELLS[name].name if name == network["cell"] else name
        with np.errstate(invalid="ignore"):  # a dead curve, -inf at both, has no ratio
            factor = (mean[1] - mean[lag]) / np.log(10)
        shrunk.append(f"{format_factor(factor)} ({called})")
    if stage == "init" and any(f"{n['name']}/diverged" in arrays for n in networks):
        return "No trained network to measure: every seed diverged"
    moment = (
        "the trained gradient has" if stage == "trained" else "before training the gradient has"
    )
    return f"{lag} {unit}s back, {moment} shrunk " + ", ".join(shrunk)


def format_factor(log10: float) -> str:
    """10^log10 as a person reads it: to two digits, in words of size."""
    if np.isnan(log10):
        return "by an unknown factor"
    if np.isinf(log10):
        return "to nothing"
    if log10 >= 15:
        return f"10^{log10:.0f} times"
    if log10 <= -2:
        return f"to 10^{-log10:.0f} times itself"
    for exponent, word in ((12, "trillion"), (9, "billion"), (6, "million"), (0, "")):
        if log10 >= exponent:
            value = float(f"{10 ** (log10 - exponent):.2g}")
            return f"{value:,.0f} {word}".rstrip() + " times"
    return f"to {100 * 10**-log10:.0f} %"
