"""The figure of throughput: how many times ours' time the others take, size by size."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, run_folder
from experiments.speed import lengths_drawing
from experiments.speed.contestants import CONTESTANTS
from experiments.speed.tables import TITLES, contestants_of, geometric_mean, ratios, times
from experiments.speed.work import SIZES, parse_size

MARKS = {
    "torch": ("#D55E00", "o"),
    "linen": ("#0072B2", "s"),
    "nnx": ("#56B4E9", "D"),
    "haiku": ("#009E73", "^"),
    "equinox": ("#CC79A7", "v"),
    "cudnn": ("#000000", "P"),
    "ours10": ("#999999", "X"),
}
NAMES = {"rnn": "RNN", "irnn": "ReLU RNN", "gru": "GRU", "lstm": "LSTM"}
MEAN_ROW = 1.7  # height of the last row, whose dots have their numbers beside them
OF_SIZE = {text: name for name, text in SIZES.items()}


def plot(folder: Path) -> list[Path]:
    """A figure for each part, a panel a cell, from the run's folder alone."""
    results = run_folder.read_json(folder / "results.json")
    versions = run_folder.read_json(folder / "versions.json")
    machine = f"{versions['device'].upper()}, {versions['cpu_cores']} cores"
    paths = []
    for part in TITLES:
        rows = [row for row in results.get("rows", []) if row["part"] == part]
        if set(contestants_of(rows)) - {"ours"}:  # somebody to compare with
            paths += plot_part(folder, part, rows, results["precision"], machine)
    if results.get("lengths"):
        paths += lengths_drawing.plot(folder / "figures", results["lengths"], machine)
    return paths


def plot_part(
    folder: Path, part: str, rows: list[dict[str, Any]], precision: str, machine: str
) -> list[Path]:
    """Dots on a log axis, the line at 1 where both are as fast."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    names = [name for name in contestants_of(rows) if name != "ours"]
    width = max(8.0, 2.6 + 4.4 * len(cells))
    figure, axes = figures.new_figure(len(cells), width, 2.3 + 0.62 * (len(sizes) + MEAN_ROW))
    every = [ratio for name in names for ratio, _ in ratios(rows, name)] or [1.0]
    low, high = min(0.8, min(every) / 1.12), max(1.6, max(every) * 1.22)
    offsets = np.linspace(-0.27, 0.27, len(names)) if len(names) > 1 else np.zeros(1)
    for axis, cell in zip(axes, cells, strict=True):
        some = [row for row in rows if row["cell"] == cell]
        draw_panel(axis, some, sizes, names, offsets)
        axis.axvspan(low, 1, color="#F3F3F3", zorder=0, linewidth=0)
        axis.axvline(1, color="#333333", linewidth=1.1, zorder=1)
        label_times(axis, some, sizes)
        axis.set(xscale="log", xlim=(low, high), title=NAMES.get(cell, cell))
        label_ratios(axis, low, high)
        axis.set_yticks([*range(len(sizes)), mean_line(sizes)], [])
        axis.set_ylim(mean_line(sizes) + 0.45 * MEAN_ROW, -0.6)
        axis.axhline(len(sizes) - 0.5, color="#BBBBBB", linewidth=0.8)
        axis.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
        axis.spines["left"].set_visible(False)
    axes[0].set_yticks(
        [*range(len(sizes)), mean_line(sizes)],
        [*(size_label(size, part) for size in sizes), "geometric mean"],
    )
    handles, labels = legend_of(axes)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10)
    figure.suptitle(
        f"{TITLES[part][0].upper()}{TITLES[part][1:]}: time of others / time of ours",
        x=0.01,
        ha="left",
        fontsize=12.5,
        fontweight="bold",
    )
    figure.supxlabel(
        "right of the line ours is faster, its time at the right edge; medians, with quartiles; "
        f"{machine}, {precision}\n\n\n",  # the legend's lines
        fontsize=8.5,
        color="#555555",
    )
    return figures.save(figure, folder / "figures", f"throughput_{part}")


def draw_panel(axis: Any, rows: Any, sizes: list[str], names: list[str], offsets: Any) -> None:
    """One cell: each contestant's dots, its quartiles, and its mean in the last line."""
    for name, offset in zip(names, offsets, strict=True):
        colour, mark = MARKS[name]
        for row in rows:
            for ratio, size in ratios([row], name):
                ours = row["contestants"]["ours"]["ms"]
                y = sizes.index(size) + offset
                span = [q / ours for q in row["contestants"][name]["ms_quartiles"]]
                axis.plot(span, [y, y], color=colour, linewidth=1.6, alpha=0.45, zorder=2)
                axis.plot(ratio, y, mark, color=colour, markersize=6.5, zorder=3)
        found = [ratio for ratio, _ in ratios(rows, name)]
        if found:
            axis.plot(
                geometric_mean(found),
                mean_line(sizes) + MEAN_ROW * offset,
                mark,
                color=colour,
                markersize=8.5,
                markeredgecolor="white",
                markeredgewidth=0.8,
                zorder=3,
                label=CONTESTANTS[name].label,
            )
            axis.annotate(
                times(geometric_mean(found)),
                (geometric_mean(found), mean_line(sizes) + MEAN_ROW * offset),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="#333333",
            )


def label_times(axis: Any, rows: Any, sizes: list[str]) -> None:
    """What ours takes, at the right edge."""
    for row in rows:
        ours = row["contestants"].get("ours", {})
        if "ms" in ours:
            axis.annotate(
                f"{ours['ms']:.3g} ms" if ours["ms"] < 1000 else f"{ours['ms'] / 1000:.2f} s",
                (1, sizes.index(row["size"])),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color="#555555",
            )


def mean_line(sizes: list[str]) -> float:
    """Where the middle of the last row is, below the lines of the sizes."""
    return len(sizes) - 0.42 + 0.35 * MEAN_ROW


def legend_of(axes: Any) -> tuple[list[Any], list[str]]:
    """Each contestant once, whichever panels it is in."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = [c.label for c in CONTESTANTS.values() if c.label in found]
    return [found[label] for label in order], order


def size_label(text: str, part: str) -> str:
    """What a size is, in two lines."""
    size = parse_size(text)
    name = OF_SIZE.get(text, "")
    shape = f"B {size.batch}  T {size.length}  H {size.hidden}"
    if part == "layer":
        return f"{name}\n{shape}".strip()
    return f"{name}  {shape}\nL {size.layers}  V {size.vocabulary:,}".strip()


def label_ratios(axis: Any, low: float, high: float) -> None:
    """Ticks that a log axis of a few times has room for."""
    span = high / low
    digits: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 2, 2.5)
    if span > 12:
        digits = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    elif span > 3:
        digits = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10)
    ticks = [d for d in digits if low <= d <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
