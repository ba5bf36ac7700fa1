"""What the gallery's figures look like beside the one figure style: title, caption, grids."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb

from experiments import figures

GREY = "#555555"
LOG10 = 1 / 2.302585092994046  # nats to powers of ten


def tints(colour: str, count: int) -> list[str]:
    """Shades of one hue, for one cell at several settings: light to dark, itself in the middle."""
    mixed = []
    for at in np.linspace(-0.6, 0.6, count):
        other = np.ones(3) if at < 0 else np.zeros(3)
        red, green, blue = (1 - abs(at)) * np.asarray(to_rgb(colour)) + abs(at) * other
        mixed.append(to_hex((float(red), float(green), float(blue))))
    return mixed


def new_page(mosaic: Sequence[Sequence[str]], width: float, height: float, **options: Any) -> Any:
    """A figure with named panels: (figure, name -> axes)."""
    plt.rcParams.update(figures.STYLE)  # type: ignore[arg-type]
    figure: Any = plt.figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, figure.subplot_mosaic(mosaic, **options)


def dress(figure: Any, finding: str, caption: str) -> Any:
    """The finding as title, and below the figure what was measured how."""
    wide = figure.get_figwidth()
    figure.suptitle(
        textwrap.fill(finding, int(wide * 9)), x=0.01, ha="left", fontsize=12.5, fontweight="bold"
    )
    figure.supxlabel(textwrap.fill(caption, int(wide * 14.5)), fontsize=8.5, color=GREY)
    return figure


def colour_bar(figure: Any, image: Any, axes: Any, label: str, **options: Any) -> Any:
    """A colour bar without a frame."""
    bar = figure.colorbar(image, ax=axes, label=label, **options)
    bar.outline.set_visible(False)
    return bar
