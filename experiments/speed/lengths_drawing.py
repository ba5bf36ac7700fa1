"""The figure of time against the length of the sequence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from experiments import figures
from experiments.speed.lengths import Row
from lm.cells import CELLS

MARKS = {"rnn": "o", "lstm": "s", "gru": "D", "mingru": "^", "minlstm": "v"}
TITLE = "One layer, forward and backward, against the length of the sequence"


def plot(folder: Path, rows: Sequence[Row], machine: str) -> list[Path]:
    """Milliseconds, and microseconds a step, against T: a line a cell, dashed without a W_h.

    Args:
      folder: that lengths.png and lengths.svg are written to.
      rows: what `time_lengths` returned.
      machine: what the times were taken on, for the caption.
    """
    figure, (left, right) = figures.new_figure(2)
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    for index, cell in enumerate(cells):
        own = sorted((row for row in rows if row["cell"] == cell), key=lambda row: row["length"])
        lengths = np.asarray([row["length"] for row in own])
        line = {
            "color": figures.colour(cell, index),
            "marker": MARKS.get(cell, "o"),
            "linestyle": "-" if CELLS[cell].diagonal is None else (0, (4, 2)),
            "markersize": 6,
        }
        low, high = np.asarray([row["ms_quartiles"] for row in own]).T
        for axis, scale in ((left, np.ones(len(own))), (right, 1e3 / lengths)):
            middle = np.asarray([row["ms"] for row in own]) * scale
            axis.plot(lengths, middle, label=CELLS[cell].name, **line)
            axis.fill_between(
                lengths, low * scale, high * scale, color=line["color"], alpha=0.18, linewidth=0
            )
    ticks = sorted({row["length"] for row in rows})
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="T: steps of the sequence")
        axis.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=9)
    left.set(title="The whole sequence", ylabel="milliseconds")
    right.set(title="A step: the same divided by T", ylabel="microseconds a step")
    left.legend(fontsize=9.5)
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    sizes = f"B = {rows[0]['batch_size']}, H = {rows[0]['hidden_size']}, inputs of that size too"
    figure.supxlabel(
        f"{sizes}; medians, bands: quartiles; dashed: no recurrent product; {machine}",
        fontsize=8.5,
        color="#555555",
    )
    return figures.save(figure, folder, "lengths")
