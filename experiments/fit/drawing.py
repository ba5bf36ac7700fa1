"""The figures of a training run, from its folder alone."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, run_folder
from experiments.flow.table import forget_gate_start
from lm.cells import CELLS


def plot(folder: Path) -> list[Path]:
    """Perplexity against step, from the run's folder alone."""
    lines = run_folder.MetricsLog.read(folder / "metrics.jsonl")
    stored = run_folder.read_json(folder / "config.json")["config"]
    cell, corpus = stored["model"]["cell"], stored["data"]["corpus"]
    figure, (axis,) = figures.new_figure(1, width=8)
    steps, losses = zip(
        *((line["step"], line["loss"]) for line in lines if "loss" in line), strict=True
    )
    trained = np.asarray(losses, float) / np.log(10)
    valid = [(line["step"], np.log10(float(line["valid"]))) for line in lines if line.get("valid")]
    colour = figures.colour(cell)
    axis.plot(steps, trained, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(
        steps, running_mean(trained), color=colour, linewidth=2, label="training, running mean"
    )
    axis.plot(*zip(*valid, strict=True), "o-", color="#000000", label="validation, whole text")
    rule = figures.RULES[stored["optim"]["optimizer"]]
    step, best = min(valid, key=lambda point: point[1])
    axis.set(
        title=f"{CELLS[cell].name} on {Path(corpus).name}, {rule}: validation perplexity "
        f"{10**best:.4g} at step {step:,}",
        xlabel="step",
        ylabel="perplexity, exp(nats per token)",
    )
    figures.label_log10(axis)
    axis.legend()
    paths = figures.save(figure, folder / "figures", "perplexity")
    if stored.get("log_gradient_flow"):
        plot_flow(folder, stored, lines)
    return paths


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the fiftieth of all points around each, fewer at the ends."""
    width = max(1, len(values) // 50)
    sums, counts = (
        np.convolve(v, np.ones(width), mode="same") for v in (values, np.ones_like(values))
    )
    return sums / counts


def plot_seeds(folder: Path) -> list[Path]:
    """Validation perplexity against step, a line for each seed."""
    stored = run_folder.read_json(folder / "config.json")["config"]
    results = run_folder.read_json(folder / "results.json")
    cell, corpus = stored["model"]["cell"], stored["data"]["corpus"]
    figure, (axis,) = figures.new_figure(1, width=8)
    for index, seed in enumerate(results["seeds"]):
        lines = run_folder.MetricsLog.read(folder / f"seed-{seed}" / "metrics.jsonl")
        points = [(row["step"], np.log10(float(row["valid"]))) for row in lines if row.get("valid")]
        axis.plot(
            *zip(*points, strict=True),
            "o-",
            color=figures.shades(len(results["seeds"]))[index],
            markersize=4,
            label=f"seed {seed}",
        )
    test = results["test"]
    called = stored["recipe"] or f"{CELLS[cell].name} on {Path(corpus).name}"
    axis.set(
        title=f"{called}: test perplexity {test['perplexity']:.4g}, sd {test['sd']:.2g}, "
        f"over {len(results['seeds'])} seeds",
        xlabel="step",
        ylabel="validation perplexity, exp(nats per token)",
    )
    figures.label_log10(axis)
    axis.legend(fontsize=9)
    return figures.save(figure, folder / "figures", "perplexity")


def plot_flow(folder: Path, stored: Any, lines: list[dict[str, Any]]) -> list[Path]:
    """Gradient flow of the top layer through training, from what the run logged."""
    logged = [line for line in lines if "log10_lag" in line]
    picked = np.unique(np.linspace(0, len(logged) - 1, 6).round().astype(int))
    stream = stored["data"]["batching"] == "stream"
    positions = any("log10_delta" in line for line in logged)
    figure, axes = figures.new_figure(2 if positions else 1, width=12 if positions else 8)
    for shade, line in zip(figures.shades(len(picked)), [logged[k] for k in picked], strict=True):
        style: dict[str, Any] = {"color": shade, "linewidth": 2, "label": f"step {line['step']:,}"}
        axes[0].plot([float(norm) for norm in line["log10_lag"][-1]], **style)
        if "log10_delta" in line:  # not before the first step
            axes[1].plot([float(norm) for norm in line["log10_delta"][-1]], **style)
    length = stored["data"]["length"]
    beyond = " beyond truncated BPTT" if stream else " beyond the longest row of training"
    axes[0].axvline(length, color="#777777", linewidth=0.8, linestyle=":")
    axes[0].annotate(
        beyond, (length, axes[0].get_ylim()[1]), fontsize=8.5, va="top", color="#555555"
    )
    axes[0].set(
        title="The last word's loss alone, on validation text",
        xlabel="lag: tokens before the last",
        ylabel=r"$\Vert\partial L_T / \partial h_{T-\mathrm{lag}}\Vert$",
    )
    if positions:
        axes[1].set(
            title="All losses of a chunk, as training sends them back",
            xlabel="tokens before the end of the chunk",
            ylabel=r"$\Vert\partial J / \partial z_t\Vert$ over batch and gates",
        )
    for axis in axes:
        figures.label_log10(axis)
        axis.legend(fontsize=9)
    name = CELLS[stored["model"]["cell"]].name
    called = f"How far back the gradient of the {name} reaches, through training"
    figure.suptitle(called, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    means = "stretches (left) and steps (right); before clipping" if positions else "stretches"
    text = f"top layer; geometric means over {means}; {describe_start(stored['model'])}"
    figure.supxlabel(text, fontsize=8.5, color="#555555")
    return figures.save(figure, folder / "figures", "gradient_flow")


def describe_start(stored: dict[str, Any]) -> str:
    """What a figure says of a model's parameters at the start."""
    bias = describe_bias(stored)
    return (f"{bias}, " if bias else "") + f"{describe_scale(stored)} at the start"


def describe_bias(stored: dict[str, Any]) -> str:
    """How the forget gate starts; empty where there is none."""
    start = forget_gate_start({"cell": stored["cell"], "model": stored})
    return start if not start or start.startswith("chrono") else f"forget bias {start}"


def describe_scale(stored: dict[str, Any]) -> str:
    """How the weights start."""
    if stored["init"] != "scaled":
        scale = f"weights from U(-{stored['init_range']:g}, {stored['init_range']:g})"
        return scale + ", of layers from H^-1/2" * (stored["init"] == "pytorch")
    recurrent, gain = stored.get("recurrent_init"), stored["recurrent_gain"]
    return (
        f"input scale {stored['input_scale']:g}"
        + (f", {recurrent} recurrent weights" if recurrent else "")
        + (f", recurrent gain {gain:g}" if gain != 1 else "")
    )
