"""The figures of `walkthrough`, drawn from its folder alone."""

import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib import pyplot as plt

from experiments import figures
from experiments.walk.reading import gate_order, keeping_gate
from experiments.walk.text import START, format_p
from lm.cells import CELLS
from lm.data.vocabulary import UNKNOWN

Results = dict[str, Any]
Arrays = dict[str, np.ndarray]

MOST = 40  # words of a sentence that are drawn: the last ones
FULL = 0.5  # probability of a bar across its whole panel
PANELS = 24  # next-word distributions that are drawn: the first ones
FEWEST = 20  # words that there is room for in any figure
LABEL = 14  # letters of a word in a figure
UNITS_SHOWN = 12  # of a layer's, from the longest memory to the shortest
GATE_NAMES = {
    "f": "forget gate",
    "i": "input gate",
    "o": "output gate",
    "r": "reset gate",
    "q": "update gate",
}
EQUATIONS = {"lstm": "\n$c_t = f_t\\,c_{t-1} + i_t\\,g_t$      $h_t = o_t\\,\\tanh(c_t)$"}
GREY = "#555555"
FOOT: dict[str, Any] = {"fontsize": 8.5, "color": GREY}


def plot(folder: Path, results: Results, arrays: Arrays) -> list[Path]:
    """Every figure: PNG and SVG below the run's folder."""
    where = folder / "figures"
    paths = figures.save(plot_sentence(results, arrays), where, "1_sentence")
    for row in results["models"]:
        cell = row["cell"]
        paths += figures.save(plot_next_words(results, cell), where, f"2_next_words_{cell}")
    paths += figures.save(plot_loss(results), where, "3_loss")
    paths += figures.save(plot_times(results), where, "4_time_against_length")
    paths += figures.save(plot_sizes(results), where, "5_parameters_against_length")
    return paths


# Words on an axis


@cache
def font_signs() -> frozenset[int]:
    """The code points that the figures' font has a sign for."""
    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def label(word: str) -> str:
    """A word as a figure can show it: short, no formula, no sign that the font lacks."""
    known = font_signs()
    drawn = "".join(sign if ord(sign) in known else "□" for sign in word)
    if len(drawn) > LABEL:
        drawn = drawn[: LABEL - 1] + "…"
    return drawn.replace("$", r"\$")


def word_labels(results: Results) -> list[str]:
    """The start, then every word: unknown ones in angle brackets. [T + 1]."""
    cell = results["models"][0]["cell"]
    rows = [row for row in results["words"] if row["cell"] == cell]
    return [START, *map(mark, rows)]


def mark(row: dict[str, Any]) -> str:
    """A word as a figure can show it, in angle brackets where the model does not know it."""
    return f"‹{label(row['word'])}›" if row["unknown"] else label(row["word"])


def losses(results: Results, cell: str) -> np.ndarray:
    """Nats of each word, [T]."""
    return np.asarray([row["nats"] for row in results["words"] if row["cell"] == cell])


def set_words(axis: Any, labels: list[str], first: int, visible: bool = True) -> None:
    """Words under an axis whose position k is that of word k, from `first` on."""
    at = np.arange(first, len(labels))
    axis.set_xticks(at, labels[first:] if visible else [""] * len(at))
    axis.tick_params(axis="x", length=0, labelsize=10)
    if visible:
        plt.setp(axis.get_xticklabels(), rotation=50, ha="right", rotation_mode="anchor")
    axis.set_xlim(first - 0.6, max(len(labels), first + FEWEST) - 0.4)
    axis.grid(False, axis="x")


def cells_of(results: Results) -> list[str]:
    return [row["cell"] for row in results["models"]]


def head(figure: Any, text: str, columns: int) -> None:
    """The finding, above everything."""
    figure.suptitle(
        textwrap.fill(text, columns), x=0.01, ha="left", fontsize=12.5, fontweight="bold"
    )


# One sentence: surprise, gradient, gates


def plot_sentence(results: Results, arrays: Arrays) -> Any:
    """Surprisal, the gradient that comes back, gates and cell state, word under word."""
    plt.rcParams.update(figures.STYLE)  # type: ignore[arg-type]
    labels = word_labels(results)
    first = max(0, len(labels) - MOST)
    gated = pick_gated(cells_of(results), arrays)
    heat, keeps = gate_panels(gated, arrays) if gated else ([], False)
    cells = cells_of(results)
    heights = [2.3, 0.42 * len(cells) + 0.1] + [1.15] * len(heat)
    size = (3.4 + 0.46 * max(len(labels) - first, FEWEST), sum(heights) + 3.2)
    figure, axes = plt.subplots(
        len(heights), 1, figsize=size, layout="constrained", height_ratios=heights, squeeze=False
    )
    top, strip, *rest = axes[:, 0]
    draw_surprisal(top, results, cells, labels, first)
    draw_gradient(strip, results, arrays, cells, labels, first)
    for number, (axis, (title, values, order, limits)) in enumerate(zip(rest, heat, strict=True)):
        draw_units(axis, title, values, order, limits, labels, first, figure)
        if not keeps:
            axis.set_yticks([])
        if number == len(heat) - 1:
            set_words(axis, labels, first)
    if gated:
        rest[0].annotate(
            f"What the {CELLS[gated].name} does at each {results['unit']}: {len(heat[0][2])} of "
            f"its {heat[0][1].shape[1]} units"
            f"{', from the longest memory to the shortest' * keeps}{EQUATIONS.get(gated, '')}",
            (0, 1.1),
            xycoords="axes fraction",
            fontsize=12,
        )
    head(figure, gradient_finding(results), int(size[0] * 9))
    notes = [
        "gradient: L2 norm of dL/ds of the top layer's state s (where it has a cell state: of c "
        "and h jointly)",
        *(describe_start(row) for row in results["models"]),
    ]
    if any(row["unknown"] for row in results["words"]):
        notes.append("‹...›: unknown, read as <unk>")
    if first:
        notes.append(f"the last {len(labels) - first} of {len(labels)} positions")
    figure.supxlabel(textwrap.fill("; ".join(notes), int(size[0] * 12)), **FOOT)
    return figure


def describe_start(row: dict[str, Any]) -> str:
    """What a model's gates and gradient started from."""
    bias = row["forget_bias"]
    gate = [bias if bias.startswith("chrono") else f"forget bias {bias}"] if bias else []
    if row["uniform"]:
        scales = [f"weights from U(-{row['uniform']:g}, {row['uniform']:g})"]
    else:
        scales = [f"embeddings of standard deviation {row['input_scale']:g}"]
    return f"{CELLS[row['cell']].name} at its start: {', '.join(gate + scales)}"


def draw_surprisal(
    axis: Any, results: Results, cells: list[str], labels: list[str], first: int
) -> None:
    """Bars of -ln p, the cells beside each other."""
    width = 0.8 / len(cells)
    for index, cell in enumerate(cells):
        nats = losses(results, cell)
        at = np.arange(1, len(nats) + 1) + (index - (len(cells) - 1) / 2) * width
        shown = slice(max(0, first - 1), None)
        axis.bar(
            at[shown],
            nats[shown],
            width * 0.92,
            color=figures.colour(cell, index),
            label=f"{CELLS[cell].name}, J = {nats.mean():.2f}, "
            f"perplexity {np.exp(nats.mean()):,.0f}",
        )
    blind = np.log(results["models"][0]["vocabulary"])
    axis.axhline(blind, color=GREY, linewidth=0.9, linestyle=":")
    axis.annotate(
        f"blind guess among {results['models'][0]['vocabulary']:,}",
        (1, blind),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        **FOOT,
    )
    axis.set(title=f"How surprising each {results['unit']} is", ylabel="surprisal -ln p\n(nats)")
    axis.set_ylim(0, 1.22 * max(blind, *(losses(results, cell).max() for cell in cells)))
    bits = axis.secondary_yaxis(
        "right", functions=(lambda y: y / np.log(2), lambda b: b * np.log(2))
    )
    bits.set_ylabel("bits")
    legend = axis.legend(
        fontsize=9.5 if len(cells) < 3 else 8,
        loc="lower right",
        bbox_to_anchor=(1.06, 1),
        ncols=min(len(cells), 3),
    )
    legend.set_in_layout(False)
    axis.set_axisbelow(True)
    set_words(axis, labels, first)


def draw_gradient(
    axis: Any, results: Results, arrays: Arrays, cells: list[str], labels: list[str], first: int
) -> None:
    """A strip a cell: the darker a word, the more of the last word's gradient reaches it."""
    last = results["last_word"]
    grid = np.full((len(cells), len(labels)), np.nan)
    for row, cell in enumerate(cells):
        log10 = arrays[f"{cell}/gradient"] / np.log(10)
        grid[row, : last + 1] = log10 - log10[-1]
    shown = grid[:, first:]
    finite = shown[np.isfinite(shown)]
    low = min(-1.0, float(finite.min())) if len(finite) else -1.0
    axis.imshow(
        shown,
        cmap="Blues",
        vmin=low - 0.05,
        vmax=max(0.3, float(finite.max())) if len(finite) else 0.3,
        aspect="auto",
        extent=(first - 0.5, len(labels) - 0.5, len(cells) - 0.5, -0.5),
    )
    dark = 0.35 * low
    for row in range(len(cells)):
        for k in range(first, last + 1):
            axis.text(
                k,
                row,
                format_left(grid[row, k]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if grid[row, k] > dark else "black",
            )
    axis.text(
        last + 1,
        (len(cells) - 1) / 2,
        "its\nloss",
        ha="center",
        va="center",
        fontsize=9,
        fontweight="bold",
    )
    names = [textwrap.fill(CELLS[cell].name, 12) for cell in cells]
    axis.set_yticks(range(len(cells)), names, fontsize=10)
    title = axis.set_title(
        f"How much of the gradient of the loss at '{labels[last + 1]}' gets back to each "
        f"{results['unit']} (the {results['unit']} before it: 100 %)"
    )
    title.set_in_layout(False)
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    set_words(axis, labels, first)


def format_left(log10: float) -> str:
    """What is left of a gradient, in as few letters as a word's column has."""
    if not np.isfinite(log10):
        return "0"
    percent = 10 ** (log10 + 2)
    if percent >= 9.5:
        return f"{percent:.0f} %"
    if percent >= 0.0095:
        return f"{percent:.1g} %"
    return f"$10^{{{log10:.0f}}}$"


def gradient_finding(results: Results) -> str:
    """What the strips show, in a sentence."""
    lags = results["models"][0]["gradient_lags"]
    if lags < 1:
        return "A loss after one step has nothing to send its gradient back through"
    parts = ", ".join(
        f"{format_shrunk(row['gradient_left_log10'])} ({CELLS[row['cell']].name})"
        for row in results["models"]
    )
    steps = f"{lags} step{'s' * (lags > 1)}"
    return f"Back at the start, {steps} before, the gradient has shrunk {parts}"


def format_shrunk(log10: float | str) -> str:
    """By how much something has shrunk of which 10^log10 is left, to two digits."""
    shrunk = -float(log10)
    if shrunk <= 0:
        return "not at all"
    if shrunk < 6:
        return (
            f"{float(f'{10**shrunk:.2g}'):,.0f} times" if shrunk >= 1 else f"{10**shrunk:.1f} times"
        )
    return f"10^{shrunk:.0f} times" if np.isfinite(shrunk) else "to nothing"


def pick_gated(cells: list[str], arrays: Arrays) -> str | None:
    """The cell whose gates are drawn: one with a carried cell state, else one with any gates."""
    gated = [cell for cell in cells if any(name.startswith(f"{cell}/gate/") for name in arrays)]
    carried = [cell for cell in gated if f"{cell}/state/c" in arrays]
    return next(iter(carried + gated), None)


def gate_panels(
    cell: str, arrays: Arrays
) -> tuple[list[tuple[str, np.ndarray, np.ndarray, Any]], bool]:
    """(title, values [T, H], units shown, limits of the colours) of each heat map.

    And whether the units are ordered by how much they keep.
    """
    gates = {
        name: arrays[f"{cell}/gate/{name}"]
        for name in GATE_NAMES
        if f"{cell}/gate/{name}" in arrays
    }
    order = gate_order(gates, UNITS_SHOWN)
    panels = [(GATE_NAMES[name], values, order, (0.0, 1.0)) for name, values in gates.items()]
    carried = "c" if f"{cell}/state/c" in arrays else "h"
    state = arrays[f"{cell}/state/{carried}"]
    bound = float(np.quantile(np.abs(state[:, order]), 0.98)) or 1.0
    title = "cell state c" if carried == "c" else "hidden state h"
    return [*panels, (title, state, order, (-bound, bound))], keeping_gate(gates) is not None


def draw_units(
    axis: Any,
    title: str,
    values: np.ndarray,
    order: np.ndarray,
    limits: tuple[float, float],
    labels: list[str],
    first: int,
    figure: Any,
) -> None:
    """A heat map: words across, units from the longest memory at the top to the shortest."""
    shown = values[first:, order].T
    image = axis.imshow(
        shown,
        cmap="cividis" if limits[0] == 0 else "PuOr",
        vmin=limits[0],
        vmax=limits[1],
        aspect="auto",
        interpolation="nearest",
        extent=(first - 0.5, first - 0.5 + shown.shape[1], len(order) - 0.5, -0.5),
    )
    axis.set_yticks([0, len(order) - 1], ["keeps", "forgets"], fontsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.set_ylabel(title.replace(" ", "\n", 1), fontsize=10)
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    set_words(axis, labels, first, visible=False)
    bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=9, fraction=0.03)
    bar.outline.set_visible(False)
    if limits[0] == 0:
        bar.set_ticks([0, 1], labels=["0 shut", "1 open"], fontsize=8.5)
    else:
        bar.ax.tick_params(labelsize=8.5)


# The next word's distribution


def plot_next_words(results: Results, cell: str) -> Any:
    """A panel a word: the likeliest words as bars, the one that came marked."""
    rows = [row for row in results["words"] if row["cell"] == cell][:PANELS]
    columns = max(4, min(6, len(rows)))
    lines = -(-len(rows) // columns)
    plt.rcParams.update(figures.STYLE)  # type: ignore[arg-type]
    top = len(results["likeliest"][cell][0])
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.45 * columns, (0.24 * top + 0.85) * lines + 1.0),
        layout="constrained",
        squeeze=False,
    )
    after = ["at the start", *(f"after '{mark(row)}'" for row in rows)]
    for k, axis in enumerate(axes.flat):
        if k >= len(rows):
            axis.set_axis_off()
            continue
        draw_guesses(axis, cell, after[k], rows[k], results["likeliest"][cell][k])
    hits = sum(row["rank"] == 1 for row in rows)
    among = sum(row["rank"] <= top for row in rows)
    drawn = len([row for row in results["words"] if row["cell"] == cell])
    head(
        figure,
        f"{CELLS[cell].name}, next-{results['unit']} distribution: the likeliest came {hits} times "
        f"in {len(rows)}, one of the {top} likeliest {among} times",
        14 * columns + 20,
    )
    some = f"; the first {len(rows)} of {drawn}" if drawn > len(rows) else ""
    note = (
        f"after each {results['unit']} (title): the {top} likeliest with their probabilities; in "
        f"colour the {results['unit']} that came, below the line where it is not among them; a bar "
        f"across the panel is {FULL:.0%} or more{some}"
    )
    figure.supxlabel(textwrap.fill(note, 30 * columns), **FOOT)
    return figure


def draw_guesses(
    axis: Any, cell: str, after: str, row: dict[str, Any], guesses: list[list[Any]]
) -> None:
    """One distribution: bars from the left edge, words and per cent in them."""
    token = UNKNOWN if row["unknown"] else row["word"]
    lines = [(label(word), p, word == token) for word, p in guesses]
    came = f"{mark(row)} (rank {row['rank']:,})"
    missed = row["rank"] > len(guesses)
    if missed:
        lines.append((came, row["probability"], True))
    for k, (word, p, hit) in enumerate(lines):
        colour = figures.colour(cell) if hit else "#B4B4B4"
        axis.barh(k, min(p, FULL), 0.82, color=colour, alpha=0.6)
        axis.text(
            0.02,
            k,
            word,
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=9,
            fontweight="bold" if hit else "normal",
        )
        axis.text(
            1,
            k,
            format_p(p),
            transform=axis.get_yaxis_transform(),
            va="center",
            ha="right",
            fontsize=8.5,
            color=GREY,
        )
    if missed:
        axis.axhline(len(guesses) - 0.5, color=GREY, linewidth=0.6)
    axis.set_xlim(0, FULL)
    axis.set_ylim(len(guesses) + 0.5, -0.6)
    axis.set_title(after, fontsize=10.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    axis.spines["bottom"].set_visible(False)


# The loss adds up


def plot_loss(results: Results) -> Any:
    """A staircase a cell: each word's loss on top of those before it, up to T times J."""
    plt.rcParams.update(figures.STYLE)  # type: ignore[arg-type]
    labels, unit, cells = word_labels(results)[1:], results["unit"], cells_of(results)
    figure, axes = plt.subplots(
        len(cells),
        1,
        figsize=(3.0 + 0.46 * min(max(len(labels), FEWEST), MOST), 2.9 * len(cells) + 1.3),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for index, (axis, cell) in enumerate(zip(axes[:, 0], cells, strict=True)):
        draw_staircase(axis, cell, index, losses(results, cell), unit)
        if len(labels) <= MOST:
            set_words(axis, labels, 0, visible=axis is axes[-1, 0])
            axis.set_xlim(-0.6, max(len(labels), FEWEST) + 0.6)
    if len(labels) > MOST:
        axes[-1, 0].set_xlabel(f"{unit}s read")
    parts = ", ".join(
        f"{np.exp(losses(results, cell).mean()):.0f} ({CELLS[cell].name})" for cell in cells
    )
    head(
        figure,
        f"Every {unit} adds its loss; their mean is J, and exp(J) the perplexity: {parts}",
        int(figure.get_figwidth() * 9),
    )
    return figure


def draw_staircase(axis: Any, cell: str, index: int, nats: np.ndarray, unit: str) -> None:
    """One model's sum: a step a word, and how J is made of it."""
    ends = np.cumsum(nats)
    at = np.arange(len(nats))
    colour = figures.colour(cell, index)
    if len(nats) > MOST:  # too many to be told apart
        axis.fill_between(at, ends, step="mid", color=colour, alpha=0.6)
    else:
        axis.bar(at, nats, 0.86, bottom=ends - nats, color=colour)
        axis.bar(len(nats), ends[-1], 0.86, color=colour, alpha=0.35)
        above: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
        for k in at:
            axis.annotate(f"{nats[k]:.1f}", (k, ends[k]), xytext=(0, 2), fontsize=8, **above)
        whole = f"sum\n{ends[-1]:.1f}"
        axis.annotate(whole, (len(nats), 0), xytext=(0, 4), fontsize=9, **above)
    axis.plot([-0.43, len(nats) - 0.57], [0, ends[-1]], color=GREY, linewidth=1, linestyle=":")
    mean = ends[-1] / len(nats)
    # A short sentence leaves room on the right, a long one in the corner above its first words.
    short = len(nats) < FEWEST / 2
    axis.text(
        0.99 if short else 0.015,
        0.95,
        f"{CELLS[cell].name}\nsum {ends[-1]:.1f} nats / {len(nats)} {unit}s\n"
        f"J = {mean:.2f} nats a {unit} ({mean / np.log(2):.2f} bits)\n"
        f"perplexity = exp({mean:.2f}) = {np.exp(mean):.1f}\ndotted: J for every {unit}",
        transform=axis.transAxes,
        va="top",
        ha="right" if short else "left",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )
    axis.set_ylabel("loss so far (nats)")
    axis.set_ylim(0, 1.12 * ends[-1])
    axis.set_axisbelow(True)


# Length: time and parameters


def plot_times(results: Results) -> Any:
    """Time against length, log-log: forward beside forward and backward."""
    figure, axes = figures.new_figure(2, width=12.5, height=5.2)
    unit = results["unit"]
    for axis, what, title in (
        (axes[0], "forward", "forward"),
        (axes[1], "both", "forward and backward"),
    ):
        draw_times(axis, results, what)
        axis.set(title=title, xlabel=f"length of the text T ({unit}s)", ylabel="wall time (ms)")
        axis.legend(fontsize=9)
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    found = ", ".join(
        f"{2 ** slopes['both']:.1f} times ({CELLS[cell].name})"
        for cell, slopes in results["time_exponents"].items()
    )
    # Cells that are parallel in time need not wait, and on a CPU do.
    waits = all(CELLS[cell].diagonal is None for cell in results["time_exponents"])
    why = "Each step waits for the one before it: a" if waits else "A"
    head(figure, f"{why} text twice as long takes {found} as long", 140)
    figure.supxlabel(
        "recurrent layers alone, one text, best of several runs; dotted: the straight line through "
        "the origin and the longest text (time = T x a step's)",
        **FOOT,
    )
    return figure


def draw_times(axis: Any, results: Results, what: str) -> None:
    """One panel of times, with the straight line through the origin."""
    for index, cell in enumerate(cells_of(results)):
        rows = [row for row in results["times"] if row["cell"] == cell]
        lengths = np.asarray([row["length"] for row in rows])
        seconds = np.asarray([row[what] for row in rows])
        colour = figures.colour(cell, index)
        slope = results["time_exponents"][cell][what]
        step = seconds[-1] / lengths[-1]
        axis.plot(
            lengths,
            1e3 * seconds,
            "o-",
            color=colour,
            linewidth=2,
            label=f"{CELLS[cell].name}, slope {slope:.2f}, {1e6 * step:.0f} µs a step",
        )
        axis.plot(lengths, 1e3 * step * lengths, color=colour, linestyle=":", linewidth=1.2)
        if what == "forward":
            beside = [1e3 * row["side_by_side"] for row in rows]
            axis.plot(
                lengths,
                beside,
                "s--",
                color=colour,
                linewidth=1.2,
                markersize=4,
                alpha=0.75,
                label=f"{CELLS[cell].name}, the same arithmetic side by side",
            )
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")


def plot_sizes(results: Results) -> Any:
    """Parameters against the length of the context: two models without memory beside ours."""
    figure, (left, right) = figures.new_figure(2, width=12.5, height=5.2)
    unit, sizes, row = results["unit"], results["sizes"], results["models"][0]
    lengths = np.asarray([entry["length"] for entry in sizes])
    table = np.asarray([entry["table_log10"] for entry in sizes])
    left.plot(
        lengths[:4], table[:4], "^-", color="#000000", label=r"n-gram table, $V^n (V - 1)$ entries"
    )
    for axis, kind in ((left, ""), (right, "_core")):
        window = np.log10([entry[f"window{kind}"] for entry in sizes])
        axis.plot(lengths, window, "s-", color="#CC79A7", linewidth=2, label=f"window of n {unit}s")
        for index, cell in enumerate(cells_of(results)):
            counts = [entry[f"{cell}{kind}"] for entry in sizes]
            axis.plot(
                lengths,
                np.log10(counts),
                "o-",
                color=figures.colour(cell, index),
                linewidth=2,
                label=f"{CELLS[cell].name}, always {counts[0]:,}",
            )
        axis.set(xscale="log", xlabel=f"{unit}s of context n that it can use", ylabel="parameters")
        axis.set_xticks(lengths[::2], [f"{length:,}" for length in lengths[::2]])
        axis.set_xticks([], minor=True)
    left.set_title("All parameters")
    right.set_title("Those between the embedding and the softmax")
    left.set_ylim(np.floor(np.log10(min(sizes[0][cell] for cell in cells_of(results)))), 12.9)
    for axis in (left, right):
        figures.label_log10(axis)
        axis.legend(fontsize=9.5, loc="center right" if axis is left else "upper left")
    served = sorted({entry["length"] for entry in results["times"]})
    head(
        figure,
        "The same weights at every step: a recurrent network's size does not depend on the length",
        140,
    )
    figure.supxlabel(
        textwrap.fill(
            f"V = {row['vocabulary']:,} {unit}s, {row['hidden_size']} hidden units. The window "
            "model (Bengio et al. 2003, no direct connections) has the same embedding, hidden size "
            f"and softmax. The same recurrent weights ran every text of {served[0]} to "
            f"{served[-1]:,} {unit}s in the figure of times.",
            150,
        ),
        **FOOT,
    )
    return figure
