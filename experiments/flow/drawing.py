"""The figures of gradient_flow, drawn from a run's folder alone: one for each measure taken."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import figures, run_folder
from experiments.flow.measures import CONTEXT_ROWS, DIRECTIONS, TAU_EDGES
from experiments.flow.sources import source_of
from experiments.flow.table import Arrays, forget_gate_start, headline, measured
from lm.cells import CELLS
from lm.gradients.statistics import FLOAT32_EPSILON, seed_band

LOG10 = np.log(10)
GATES = {
    "f": "forget gate",
    "i": "input gate",
    "o": "output gate",
    "r": "reset gate",
    "q": "update gate",
}
GATE_COLOURS = {"f": "#0072B2", "i": "#E69F00", "o": "#CC79A7", "r": "#56B4E9", "q": "#009E73"}
MARKERS = "os^Dv<>Pp*"  # a network each


class Results(NamedTuple):
    """What a run's folder holds."""

    config: dict[str, Any]
    networks: list[dict[str, Any]]
    unit: str
    arrays: Arrays

    @property
    def source(self) -> str:
        """text, noise, task or checkpoint."""
        return source_of(self.config["data"]["corpus"], self.config["checkpoint"])


class Line(NamedTuple):
    """One network at one stage, as a figure draws it."""

    prefix: str  # of its arrays
    network: int  # its place among the run's networks
    style: dict[str, Any]
    label: str


def read_results(folder: Path) -> Results:
    stored = run_folder.read_json(folder / "results.json")
    return Results(
        run_folder.read_json(folder / "config.json")["config"],
        stored["networks"],
        stored["unit"],
        run_folder.read_arrays(folder / "results.npz"),
    )


def plot(folder: Path) -> list[Path]:
    """Every figure that the run's measures have; PNG files, the main one first."""
    results = read_results(folder)
    drawn = []
    for name, (needs, draw) in FIGURES.items():
        if is_measured(results.arrays, needs):
            figure = draw(results)
            drawn.append(figures.save(figure, folder / "figures", name)[0])
    return drawn


def is_measured(arrays: Arrays, needs: str, prefix: str = "") -> bool:
    """Whether an array's name starts with `needs`, of any network or of the one at `prefix`."""
    return any(key.startswith(prefix) and f"/{needs}" in key for key in arrays)


def lines_of(results: Results, needs: str) -> Iterator[Line]:
    """The networks and stages that have the measure `needs`; dashed before training."""
    for index, (network, stage) in enumerate(measured(results.networks, results.arrays)):
        prefix = f"{network['name']}/{stage}"
        if not is_measured(results.arrays, needs, f"{prefix}/"):
            continue
        cell = CELLS[network["cell"]].name
        called = cell if network["name"] == network["cell"] else f"{network['name']} ({cell})"
        start = forget_gate_start(network)
        bias = start if start.startswith("chrono") else f"forget bias {start}"
        rms = results.arrays[f"{prefix}/input_rms"].mean()
        own = own_traits(results, network)
        parts = [called, stage, *own, *([bias] if start else []), f"input rms {rms:.2g}"]
        same = sum(n["cell"] == network["cell"] for n in results.networks) > 1
        yield Line(
            prefix,
            results.networks.index(network),
            {
                "color": figures.colour("" if same else network["cell"], index),
                "linestyle": "-" if stage == "trained" else (0, (4, 2)),
                "linewidth": 2.2 if stage == "trained" else 1.6,
            },
            ", ".join(parts),
        )


def by_seed(results: Results, line: Line, name: str) -> np.ndarray:
    """A measure [S, n, B] as the mean of logs over rows, [S, n]."""
    return results.arrays[f"{line.prefix}/{name}"].mean(axis=2)


def caption(
    figure: Any,
    results: Results,
    needs: str,
    *,
    rows: int | None = None,
    reduction: str = "geometric mean",
    band: bool = True,
    more: str = "",
) -> None:
    """What the reduction is, and what the curves depend on.

    Args:
      needs: the array that the figure draws, [S, ...].
      rows: that a network's curve is a mean over; None: as many as there are stretches.
      band: the figure has bands over seeds.
    """
    lines = list(lines_of(results, needs))
    shapes = [results.arrays[f"{line.prefix}/lag_h"].shape for line in lines]
    rows = max(shape[2] for shape in shapes) if rows is None else rows
    most = max(shape[0] for shape in shapes)
    spread = f", 95 % t band over {count(most, 'seed')}" if band else f" and {count(most, 'seed')}"
    if most == 1:
        spread = ", one seed, no band" if band else ", one seed"
    text = [
        f"{reduction} over {describe_rows(results, rows)}{spread}",
        *common_traits(results),
        describe_training(results, lines),
        more,
    ]
    wrapped = textwrap.fill(
        "; ".join(part for part in text if part), int(15 * figure.get_figwidth())
    )
    figure.supxlabel(wrapped, fontsize=8.5, color="#555555")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_rows(results: Results, rows: int) -> str:
    """What the rows are that a mean is taken over."""
    texts = {corpus_of(results, network) for network in results.networks}
    source = texts.pop() if len(texts) == 1 else "each network's own text"
    if results.source in ("noise", "task"):
        return f"{count(rows, 'row')} of {source}"
    return f"one stretch of {source}" if rows == 1 else f"{rows} stretches of {source}"


def describe_training(results: Results, lines: list[Line]) -> str:
    """The optimizer; empty where this run trained nothing that the figure shows."""
    rule = figures.RULES[results.config["optim"].get("optimizer", "sgd")]
    optimizer = {"text": rule, "task": "Adam"}.get(results.source)
    if optimizer is None or not any(line.prefix.endswith("/trained") for line in lines):
        return ""
    clip = float(results.config["optim"]["clip"])  # stored as "inf" where it is infinite
    return f"{optimizer}, " + (f"global-norm clip {clip:g}" if np.isfinite(clip) else "no clipping")


def corpus_of(results: Results, network: dict[str, Any]) -> str:
    """The name of what a network was trained on or reads."""
    return str(network.get("corpus", Path(results.config["data"]["corpus"]).name))


def traits(results: Results, network: dict[str, Any]) -> tuple[str, ...]:
    """What a network was, a line of words each; empty where it goes without saying."""
    model = network["model"]
    return (
        f"hidden size {model.get('last_hidden_size') or model['hidden_size']}",
        f"top of {model['layers']} layers" if model["layers"] > 1 else "",
        f"recurrent gain {model['recurrent_gain']:g}" if model["recurrent_gain"] != 1 else "",
    )


def common_traits(results: Results) -> list[str]:
    """The traits that all networks share: said once, in the caption."""
    columns = zip(*(traits(results, network) for network in results.networks), strict=True)
    return [column[0] for column in columns if len(set(column)) == 1]


def own_traits(results: Results, network: dict[str, Any]) -> list[str]:
    """Those in which the networks differ, their texts too: said in each label."""
    shared = common_traits(results)
    own = [trait for trait in traits(results, network) if trait and trait not in shared]
    texts = {corpus_of(results, other) for other in results.networks}
    return [*own, f"on {corpus_of(results, network)}"] if len(texts) > 1 else own


def title(figure: Any, text: str) -> None:
    figure.suptitle(textwrap.fill(text, 100), x=0.01, ha="left", fontsize=12.5, fontweight="bold")


def octave_ticks(axis: Any, last: int, first: int = 2) -> None:
    """Powers of two along a logarithmic x axis, from 1 or 2 on."""
    every = 1 if last <= 512 else 2
    start = 0 if first == 1 else 1
    ticks = [2**k for k in range(start, 15, every) if first <= 2**k <= last]
    axis.set(xscale="log")
    axis.set_xticks(ticks, [f"{t:,}" for t in ticks], minor=False)
    axis.set_xticks([], minor=True)


def plot_log(
    axis: Any, results: Results, name: str, line: Line, *, x: Any = None, label: bool = True
) -> None:
    """A log-norm measure [S, n, B] with its band over seeds."""
    values = by_seed(results, line, name)
    x = np.arange(values.shape[1]) if x is None else x
    text = line.label if label else None
    with np.errstate(invalid="ignore"):  # -inf, a gradient that is exactly zero
        figures.plot_band(axis, x, *seed_band(values), label=text, **line.style)


def draw_main(results: Results) -> Any:
    """||dL_T/dh_t|| against the lag, and ||dL_T/dW_h|| against the length."""
    arrays, unit = results.arrays, results.unit
    lengths_too = any(key.endswith("/length_w") for key in arrays)
    figure, axes = figures.new_figure(2 if lengths_too else 1, width=12 if lengths_too else 8)
    left = axes[0]
    for line in lines_of(results, "lag_h"):
        lag_h = by_seed(results, line, "lag_h")
        with np.errstate(invalid="ignore"):  # a dead curve, -inf at lag 1, has no ratio
            band = seed_band(lag_h - lag_h[:, 1:2])
        at = np.arange(1, lag_h.shape[1])
        figures.plot_band(left, at, *(part[1:] for part in band), label=line.label, **line.style)
        if f"{line.prefix}/length_w" in arrays:
            plot_log(axes[1], results, "length_w", line, x=arrays["lengths"])
    left.set(
        title=f"How much of the last {unit}'s loss reaches back",
        xlabel=f"lag: {unit}s before the last",
        ylabel=r"$\Vert\partial L_T / \partial h_{T-\mathrm{lag}}\Vert$, relative to lag 1",
    )
    mark_epsilon(left)
    figures.label_log10(left)
    left.legend(fontsize=9)
    if lengths_too:
        right = axes[1]
        right.set(
            title="What the recurrent weights learn from a longer text",
            xlabel=f"sequence length T ({unit}s)",
            ylabel=r"$\Vert\partial L_T / \partial W_h\Vert$",
        )
        octave_ticks(right, arrays["lengths"][-1], first=max(2, arrays["lengths"][0]))
        figures.label_log10(right)
    title(figure, headline(results.networks, arrays, unit))
    caption(figure, results, "lag_h")
    return figure


def mark_epsilon(axis: Any) -> None:
    """A line where float32 no longer adds what is left to what was there."""
    level = FLOAT32_EPSILON / LOG10
    axis.axhline(level, color="#777777", linewidth=0.8, linestyle=":")
    axis.annotate(
        "float32 epsilon",
        (0.01, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color="#555555",
        annotation_clip=True,
    )


def draw_shares(results: Results) -> Any:
    """Each lag's share of dL/dW_h, and what truncation loses."""
    figure, (left, right) = figures.new_figure(2)
    for line in lines_of(results, "share"):
        share = by_seed(results, line, "share").mean(axis=0)
        left.plot(np.arange(len(share)), np.cumsum(share), label=line.label, **line.style)
        cosine = by_seed(results, line, "truncation_cosine").mean(axis=0)
        right.plot(np.arange(1, len(cosine) + 1), cosine, label=line.label, **line.style)
    left.set(
        title="Nearest steps make up the recurrent weights' gradient",
        xlabel=f"lag ({results.unit}s before the last), logarithmic from 1",
        ylabel=r"share of $\partial L_T/\partial W_h$ from lags up to this",
    )
    left.set_xscale("symlog", linthresh=1)
    left.axhline(1, color="#777777", linewidth=0.8, linestyle=":")
    right.set(
        title="Direction that truncated BPTT keeps",
        xlabel=f"truncation: {results.unit}s of BPTT",
        ylabel="cosine with the whole gradient",
    )
    octave_ticks(right, results.arrays["lengths"][-1])
    left.legend(fontsize=9, loc="lower right")
    title(figure, "Which steps the gradient of the recurrent weights comes from")
    caption(
        figure, results, "share", reduction="mean", band=False, more="of each row's own gradient"
    )
    return figure


def draw_jacobian(results: Results) -> Any:
    """Largest and mean stretch of the product of Jacobians."""
    figure, (axis,) = figures.new_figure(1, width=8)
    for line in lines_of(results, "jacobian_spectral"):
        plot_log(axis, results, "jacobian_spectral", line)
        thin = line._replace(style=line.style | {"linewidth": 0.9})
        plot_log(axis, results, "jacobian_frobenius", thin, label=False)
    axis.set(
        title="What a gradient can be stretched by on its way back",
        xlabel=f"lag ({results.unit}s)",
        ylabel=r"$\Vert\partial s_T / \partial s_{T-\mathrm{lag}}\Vert$",
    )
    figures.label_log10(axis)
    axis.legend(fontsize=9)
    rows = results.arrays[f"{line.prefix}/jacobian_spectral"].shape[2]
    caption(figure, results, "jacobian_", rows=rows, more="thick: spectral norm, thin: Frobenius")
    return figure


def draw_singular(results: Results) -> Any:
    """All singular values against the lag, a panel a network."""
    lines = list(lines_of(results, "singular"))
    figure, axes = figures.new_figure(len(lines), width=max(8, 4.5 * len(lines)))
    for axis, line in zip(axes, lines, strict=True):
        values = results.arrays[f"{line.prefix}/singular"].mean(axis=0) / LOG10
        lags = results.arrays["lengths"]
        picked = np.unique(np.linspace(0, values.shape[1] - 1, 24).round().astype(int))
        for shade, k in zip(figures.shades(len(picked)), picked, strict=True):
            axis.plot(lags, values[:, k], color=shade, linewidth=1)
        axis.set_title(textwrap.fill(line.label, 40), fontsize=10)
        axis.set(xlabel=f"lag ({results.unit}s)", ylabel="singular values of the product")
        figures.label_log10(axis)
    title(figure, "Singular values of the state's Jacobian product, the largest dark")
    caption(figure, results, "singular", rows=1, band=False)
    return figure


def draw_lyapunov(results: Results) -> Any:
    """The Lyapunov spectrum of the joint state."""
    figure, (axis,) = figures.new_figure(1, width=8)
    for line in lines_of(results, "lyapunov"):
        values = results.arrays[f"{line.prefix}/lyapunov"].mean(axis=1)
        band = seed_band(values)
        index = (np.arange(values.shape[1]) + 0.5) / values.shape[1]
        axis.plot(index, band.mean, label=f"{line.label}: {band.mean[0]:.3f}", **line.style)
    axis.axhline(0, color="#777777", linewidth=0.8, linestyle=":")
    axis.set(
        title="Lyapunov exponents: the largest is the slope of the gradient",
        xlabel="exponents, from the largest, as a share of the state's size",
        ylabel=f"nats per {results.unit}",
    )
    axis.legend(fontsize=9)
    rows = results.arrays[f"{line.prefix}/lyapunov"].shape[1]
    more = "joint state"
    caption(figure, results, "lyapunov", rows=rows, reduction="mean", band=False, more=more)
    return figure


def draw_gates(results: Results) -> Any:
    """Saturation of every gate; time scales of the forget gate, where a cell has one."""
    scales = list(lines_of(results, "tau"))
    figure, axes = figures.new_figure(2 if scales else 1, width=12 if scales else 8)
    for line in lines_of(results, "gate_"):
        plot_saturation(axes[0], results, line)
    axes[0].plot([0, 1], [1, 0], color="#777777", linewidth=0.8, linestyle=":")
    axes[0].set(
        title="Saturation, a point a unit",
        xlabel="share of the time the gate is below 0.1",
        ylabel="share of the time above 0.9",
    )
    axes[0].legend(fontsize=7.5)
    if scales:
        plot_time_scales(axes[1], results, scales)
    title(figure, "What the gates do")
    caption(figure, results, "gate_", reduction="shares", band=False)
    return figure


def plot_saturation(axis: Any, results: Results, line: Line) -> None:
    """A point a unit and gate, filled after training; a marker a network, a colour a gate."""
    for gate, colour in GATE_COLOURS.items():
        if f"{line.prefix}/gate_{gate}_low" not in results.arrays:
            continue
        low, high = (
            results.arrays[f"{line.prefix}/gate_{gate}_{end}"].mean(axis=0)
            for end in ("low", "high")
        )
        axis.plot(
            low,
            high,
            MARKERS[line.network % len(MARKERS)],
            color=colour,
            markerfacecolor=colour if line.prefix.endswith("trained") else "none",
            alpha=0.6,
            markersize=4,
            label=f"{GATES[gate]}: {line.label.split(', input rms')[0]}",
        )


def plot_time_scales(axis: Any, results: Results, lines: list[Line]) -> None:
    """Histograms of tau; what lies beyond the last edge is said in the legend."""
    for line in lines:
        shares = results.arrays[f"{line.prefix}/tau"].mean(axis=0)
        beyond = f"; {100 * shares[-1]:.2g} % beyond {TAU_EDGES[-1]:,.0f}" if shares[-1] else ""
        axis.stairs(shares[1:-1], TAU_EDGES, label=line.label + beyond, **line.style)
    axis.set(
        title="Time scales of the forget gate",
        xlabel=rf"$\tau = 1/(1-f)$ ({results.unit}s)",
        ylabel="share of activations",
    )
    octave_ticks(axis, 4096, first=1)
    axis.legend(fontsize=8.5)


def draw_paths(results: Results) -> Any:
    """The gradient along the carry and through the recurrent weights."""
    figure, (axis,) = figures.new_figure(1, width=8)
    for line in lines_of(results, "path_"):
        if np.isfinite(by_seed(results, line, "path_carried")[:, 1:]).any():
            thick = line._replace(label=f"{line.label}: carried elementwise")
            plot_log(axis, results, "path_carried", thick)
        through = line._replace(
            style=line.style | {"linewidth": 1, "marker": ".", "markevery": 0.06},
            label=f"{line.label}: through $W_h$",
        )
        if np.isfinite(by_seed(results, line, "path_recurrent")).any():
            plot_log(axis, results, "path_recurrent", through)
    axis.set(
        title="Two ways back: along the cell state, and through the recurrent weights",
        xlabel=f"lag ({results.unit}s)",
        ylabel="norm of each part of the gradient, whole state",
    )
    figures.label_log10(axis)
    axis.legend(fontsize=8.5)
    caption(figure, results, "path_")
    return figure


def draw_sensitivity(results: Results) -> Any:
    """Forward sensitivity of the state to its recurrent weights."""
    figure, (axis,) = figures.new_figure(1, width=8)
    for line in lines_of(results, "sensitivity"):
        plot_log(axis, results, "sensitivity", line)
    axis.set(
        title="How sensitive the state is to its recurrent weights",
        xlabel=f"{results.unit}s read",
        ylabel=r"$\Vert\partial s_t / \partial W_h\Vert_F$, estimated",
    )
    figures.label_log10(axis)
    axis.legend(fontsize=9)
    more = f"root mean square over {DIRECTIONS} random directions"
    caption(figure, results, "sensitivity", more=more)
    return figure


def draw_omega(results: Results) -> Any:
    """Pascanu's regulariser by lag."""
    figure, (axis,) = figures.new_figure(1, width=8)
    for line in lines_of(results, "omega"):
        values = by_seed(results, line, "omega").mean(axis=0)
        axis.plot(np.arange(1, len(values) + 1), values, label=line.label, **line.style)
    axis.set(
        title="Pascanu's regulariser: 0 where a step back keeps the gradient's norm",
        xlabel=f"lag ({results.unit}s)",
        ylabel=r"$\Omega$",
        yscale="log",
    )
    axis.legend(fontsize=9)
    caption(figure, results, "omega", reduction="mean", band=False)
    return figure


def draw_context(results: Results) -> Any:
    """The loss when only the last n words are left as they were."""
    lines = list(lines_of(results, "context_cut"))
    figure, axes = figures.new_figure(len(lines), width=max(8, 5.5 * len(lines)))
    for axis, line in zip(axes, lines, strict=True):
        kept = results.arrays[f"{line.prefix}/context_kept"][0]
        for shade, name in zip(
            figures.shades(4), ("cut", "replace", "drop", "shuffle"), strict=True
        ):
            values = results.arrays.get(f"{line.prefix}/context_{name}")
            if values is not None:
                axis.plot(kept, values.mean(axis=0), "o-", markersize=3, color=shade, label=name)
        axis.set_title(textwrap.fill(line.label, 50), fontsize=10)
        axis.set(
            xlabel=f"{results.unit}s next to the target left as they were",
            ylabel=f"nats per {results.unit}",
        )
        octave_ticks(axis, kept[-1])
        axis.legend(fontsize=9, title=f"what becomes of the other {results.unit}s")
    title(figure, "What far words are used for: the loss without them")
    rows = min(CONTEXT_ROWS, results.arrays[f"{lines[0].prefix}/lag_h"].shape[2])
    more = (
        "cut also starts from the zero state, which a model trained with carried state has seldom "
        "seen"
    )
    caption(figure, results, "context_", rows=rows, reduction="mean", band=False, more=more)
    return figure


# name -> (how the array that it needs begins, its drawing)
FIGURES: dict[str, tuple[str, Callable[[Results], Any]]] = {
    "gradient_flow": ("lag_h", draw_main),
    "shares": ("share", draw_shares),
    "jacobian": ("jacobian_spectral", draw_jacobian),
    "singular": ("singular", draw_singular),
    "lyapunov": ("lyapunov", draw_lyapunov),
    "gates": ("gate_", draw_gates),
    "paths": ("path_carried", draw_paths),
    "sensitivity": ("sensitivity", draw_sensitivity),
    "omega": ("omega", draw_omega),
    "context": ("context_cut", draw_context),
}
