"""The one figure style: a colour a cell, colour-blind safe, log axes, bands, PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager

# Okabe and Ito 2008, and Tol's muted ones: told apart with every common colour blindness.
COLOURS = {
    "rnn": "#D55E00",
    "irnn": "#E69F00",
    "lstm": "#0072B2",
    "gru": "#009E73",
    "cifg": "#CC79A7",
    "nig": "#56B4E9",
    "nfg": "#000000",
    "nog": "#DDAA33",
    "niaf": "#117733",
    "noaf": "#332288",
    "peephole": "#44AA99",
    "fgr": "#999933",
    "lnlstm": "#AA4499",
    "mingru": "#8F8F8F",
    "minlstm": "#882255",
}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#000000", "#F0E442")

# Fonts with the signs that the first lacks, in the order in which they are asked.
FALLBACKS = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
)
INSTALLED = {font.name for font in font_manager.fontManager.ttflist}

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", *(name for name in FALLBACKS if name in INSTALLED)],
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "figure",
}


# What an optimizer is called on figures.
RULES = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSProp"}


def colour(cell: str, index: int = 0) -> str:
    """The colour of a cell; cells without one of their own take the next free."""
    return COLOURS.get(cell, OTHER_COLOURS[index % len(OTHER_COLOURS)])


def shades(count: int) -> list[Any]:
    """Colours for an ordered series, dark first; told apart in grey and with colour blindness."""
    return [plt.get_cmap("viridis")(x) for x in np.linspace(0.05, 0.85, max(2, count))][:count]


def new_figure(columns: int, width: float = 12.0, height: float = 5.4) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(axes).tolist()


def plot_band(
    axis: Any, x: np.ndarray, log_mean: np.ndarray, low: np.ndarray, high: np.ndarray, **line: Any
) -> Any:
    """A curve of natural logs with its band, drawn as values on a log10 axis.

    log10 of the values is plotted, since they may lie beyond the range of a float.
    """
    factor = 1 / np.log(10)
    (drawn,) = axis.plot(x, log_mean * factor, **line)
    if np.isfinite(low).any():
        axis.fill_between(
            x, low * factor, high * factor, color=drawn.get_color(), alpha=0.18, linewidth=0
        )
    return drawn


def label_log10(axis: Any) -> None:
    """Label a y axis that shows log10: whole powers, or 1-2-5 where it spans few of them."""
    low, high = limits_of_lines(axis)
    if high - low > 3:
        step = max(1, int(np.ceil((high - low) / 9)))
        first = int(np.ceil(low / step)) * step  # no search: a diverged run spans 10^25 powers
        powers = range(first, int(np.floor(high)) + 1, step)
        axis.set_yticks(powers, [f"$10^{{{power}}}$" for power in powers])
    else:
        decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
        digits = (1, 2, 5) if high - low > 0.8 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        values = [digit * 10.0**decade for decade in decades for digit in digits]
        axis.set_yticks(np.log10(values), [f"{value:g}" for value in values])
    axis.set_ylim(low, high)


def label_log10_bar(bar: Any, label: str) -> None:
    """Label a colour bar that shows log10 with the values themselves."""
    low, high = bar.vmin, bar.vmax
    digits = (1, 2, 5) if high - low > 1 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    values = np.asarray([digit * 10.0**decade for decade in decades for digit in digits])
    inside = values[(np.log10(values) >= low) & (np.log10(values) <= high)]
    bar.set_ticks(np.log10(inside), labels=[f"{value:g}" for value in inside])
    bar.set_label(label)


def limits_of_lines(axis: Any, room: float = 0.25) -> tuple[float, float]:
    """y limits by the curves, with room for their bands: two seeds' t bands would fill the axis."""
    low, high = axis.get_ylim()
    drawn = [line.get_ydata() for line in axis.get_lines() if len(line.get_ydata()) > 2]
    values = np.concatenate([np.asarray(y, float) for y in drawn]) if drawn else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return low, high
    spare = room * max(np.ptp(values), 0.1)
    return max(low, values.min() - spare), min(high, values.max() + spare)


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg, each whole or not at all."""
    paths = []
    for kind in ("png", "svg"):
        path = folder / f"{name}.{kind}"
        partial = folder / f"{name}.partial.{kind}"
        figure.savefig(partial, metadata={"Date": None} if kind == "svg" else None)
        partial.replace(path)
        paths.append(path)
    plt.close(figure)
    return paths
