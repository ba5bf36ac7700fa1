"""Figures of a sweep: the score against each option, two options as a map, all options at once."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments import figures
from experiments.search.board import show
from experiments.search.space import Axis
from experiments.search.summary import Setting, find_settings
from lm.gradients.statistics import seed_band

PANELS = 4  # side by side, at most
MOST_TICKS = 9
MOST_NUMBERS = 150  # cells of a map that are written into
BLUE, GREY, RED = "#0072B2", "#8F8F8F", "#D55E00"
DOT: dict[str, Any] = {"color": GREY, "alpha": 0.35, "markersize": 4}


def plot_sweep(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[Axis],
    score: str,
    what: str,
    finding: str,
    caption: str,
    folder: Path,
) -> list[Path]:
    """All figures that the sweep has something for.

    Args:
      score: column that is to be small.
      what: what it is called.
      finding: the title.
      caption: how it was made, a line.
      folder: of the figures.
    """
    names = [axis.name for axis in axes]
    settings = find_settings(rows, names, score)
    if not any(setting.scores for setting in settings):
        return []
    shown = [axis for axis in axes if axis.name != "seed" and count_values(settings, axis) > 1]
    paths = []
    if shown:
        paths += plot_marginals(settings, shown, what, finding, caption, folder)
    if len(shown) >= 2:
        pair = sorted(shown, key=lambda axis: -count_values(settings, axis))[:2]
        paths += plot_map(settings, pair, what, caption, folder)
    if len(shown) >= 3:
        paths += plot_parallel(settings, shown, what, caption, folder)
    return paths


def count_values(settings: Sequence[Setting], axis: Axis) -> int:
    return len({setting.options[axis.name] for setting in settings})


def finished(settings: Sequence[Setting]) -> list[Setting]:
    return [setting for setting in settings if setting.scores]


class Scale:
    """Where the values of an option stand on an axis.

    Few listed values stand evenly, or by their logarithms where they are spread over decades;
    many, and those that were drawn from a range, stand where they are.
    """

    def __init__(self, axis: Axis, values: Sequence[Any]):
        unique = set(values)
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in unique)
        numbers = numbers and all(math.isfinite(v) for v in unique)
        self.name = axis.name
        self.drawn = not axis.values
        self.ordered = sorted(unique) if numbers else sorted(unique, key=str)
        positive = numbers and self.ordered[0] > 0
        spread = positive and not self.drawn and self.ordered[-1] / self.ordered[0] >= 20
        self.log = bool(positive and (axis.logarithmic or spread))
        few = not self.drawn and len(unique) <= MOST_TICKS
        self.listed = not numbers or few  # a tick at each value
        self.even = not numbers or (few and not self.log)
        self.joined = numbers and not self.drawn  # by a line

    def place(self, value: Any) -> float:
        """Of a value on its axis."""
        if self.even:
            return float(self.ordered.index(value))
        return math.log10(value) if self.log else float(value)

    def ticks(self) -> list[Any]:
        """The values themselves where they are few, else round ones between their ends."""
        if self.listed:
            return self.ordered[:: math.ceil(len(self.ordered) / MOST_TICKS)]
        low, high = self.ordered[0], self.ordered[-1]
        if not self.log:
            return [v for v in MaxNLocator(5).tick_values(low, high) if low <= v <= high]
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        digits = (1, 2, 5) if last - first <= 2 else (1,)
        round_ones = [d * 10.0**decade for decade in range(first, last + 1) for d in digits]
        return [v for v in round_ones if low <= v <= high] or [low, high]

    def label(self, set_ticks: Any) -> None:
        """Label an axis, given its `set_xticks` or `set_yticks`."""
        ticks = self.ticks()
        set_ticks([self.place(value) for value in ticks], [show(value) for value in ticks])


def plot_marginals(
    settings: Sequence[Setting],
    axes: Sequence[Axis],
    what: str,
    finding: str,
    caption: str,
    folder: Path,
) -> list[Path]:
    """A panel for each option: every setting as a dot, and the best one at each value as a line."""
    axes = axes[:PANELS]
    figure, panels = figures.new_figure(len(axes), width=max(8.0, 4.2 * len(axes)))
    top = limit_of(settings)
    for number, (panel, axis) in enumerate(zip(panels, axes, strict=True)):
        scale = Scale(axis, [setting.options[axis.name] for setting in settings])
        dots = [
            (scale.place(setting.options[axis.name]), math.log10(value))
            for setting in finished(settings)
            for value in setting.scores
            if 0 < value <= top
        ]
        panel.plot(*zip(*dots, strict=True), "o", label="a run", **DOT)
        draw_profile(panel, settings, scale)
        lost = [
            scale.place(setting.options[axis.name]) for setting in settings if setting.unfinished
        ]
        if lost:
            panel.plot(
                lost,
                np.full(len(lost), 0.985),
                "x",
                color=RED,
                transform=panel.get_xaxis_transform(),
                label="diverged or failed",
            )
        scale.label(panel.set_xticks)
        panel.set(xlabel=axis.name + (", logarithmic" if scale.log else ""))
        figures.label_log10(panel)
        if number == 0:
            panel.set(ylabel=what)
            panel.legend(fontsize=9, loc="upper right")
    figure.suptitle(finding, x=0.01, ha="left", fontsize=12)
    figure.supxlabel(caption, fontsize=8, x=0.01, ha="left")
    return figures.save(figure, folder, "sweep")


def limit_of(settings: Sequence[Setting]) -> float:
    """Scores above this are left out of a figure: a bad run would press the others together."""
    values = np.asarray([value for setting in settings for value in setting.scores])
    return float(max(np.quantile(values, 0.75) * 1.5, values.min() * 3))


def draw_profile(panel: Any, settings: Sequence[Setting], scale: Scale) -> None:
    """At each value the setting of least mean, over all other options, with its seeds' band.

    Of values that were drawn no two are alike: each setting's mean.
    """
    best: dict[Any, Setting] = {}
    for setting in finished(settings):  # best first
        best.setdefault(setting.options[scale.name], setting)
    values = sorted(best, key=scale.place)
    bands = [seed_band(np.log10(np.asarray(best[value].scores))) for value in values]
    x = np.asarray([scale.place(value) for value in values])
    mean, low, high = (np.asarray([getattr(b, f) for b in bands]) for f in ("mean", "low", "high"))
    label = "mean of a setting" if scale.drawn else "best at this value"
    panel.plot(x, mean, "o-" if scale.joined else "o", color=BLUE, label=label, zorder=3)
    if scale.joined and np.isfinite(low).any():
        panel.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0)


def plot_map(
    settings: Sequence[Setting], pair: Sequence[Axis], what: str, caption: str, folder: Path
) -> list[Path]:
    """Two options: the least mean over the others, as a coloured field, or as dots if drawn."""
    across, up = (Scale(a, [s.options[a.name] for s in settings]) for a in pair)
    least: dict[tuple[Any, Any], float] = {}
    for setting in settings:
        at = setting.options[across.name], setting.options[up.name]
        least[at] = min(least.get(at, math.inf), setting.mean)
    figure, (panel,) = figures.new_figure(1, width=8, height=6)
    panel.grid(False)
    found = [value for value in least.values() if math.isfinite(value)]
    low, high = span([math.log10(min(found)), math.log10(min(max(found), limit_of(settings)))])
    colours: dict[str, Any] = {"cmap": "viridis_r", "vmin": low, "vmax": high}
    draw = draw_field if len(across.ordered) * len(up.ordered) <= 4 * len(least) else draw_dots
    drawn = draw(panel, across, up, least, colours)
    figures.label_log10_bar(figure.colorbar(drawn, ax=panel, extend="max"), what)
    panel.set(xlabel=across.name, ylabel=up.name)
    panel.set_title(f"{what}: least over the other options, mean over seeds", fontsize=11)
    figure.supxlabel(caption, fontsize=8, x=0.01, ha="left")
    return figures.save(figure, folder, "sweep_map")


def draw_field(
    panel: Any,
    across: Scale,
    up: Scale,
    least: Mapping[tuple[Any, Any], float],
    colours: Mapping[str, Any],
) -> Any:
    """A cell for each pair of values, with its number where there is room; ✗: none finished."""
    field = np.full((len(up.ordered), len(across.ordered)), np.nan)
    for (a, b), value in least.items():
        row, column = up.ordered.index(b), across.ordered.index(a)
        if math.isfinite(value):
            field[row, column] = math.log10(value)
        if field.size <= MOST_NUMBERS:
            middle = (colours["vmin"] + colours["vmax"]) / 2
            light = math.isfinite(value) and math.log10(value) > middle
            panel.text(
                column + 0.5,
                row + 0.5,
                f"{value:.4g}" if math.isfinite(value) else "✗",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if light else "black",
            )
    for scale, axis in ((across, panel.xaxis), (up, panel.yaxis)):
        every = max(1, math.ceil(len(scale.ordered) / 12))
        places = np.arange(len(scale.ordered)) + 0.5
        axis.set_ticks(places[::every], [show(value) for value in scale.ordered[::every]])
    return panel.pcolormesh(field, edgecolors="white", linewidth=1, **colours)


def draw_dots(
    panel: Any,
    across: Scale,
    up: Scale,
    least: Mapping[tuple[Any, Any], float],
    colours: Mapping[str, Any],
) -> Any:
    """A dot for each pair of values that was drawn."""
    good = {at: value for at, value in least.items() if math.isfinite(value)}
    places = [(across.place(a), up.place(b)) for a, b in good]
    logs = np.log10(list(good.values()))
    across.label(panel.set_xticks)
    up.label(panel.set_yticks)
    return panel.scatter(*zip(*places, strict=True), c=logs, s=90, edgecolors="white", **colours)


def plot_parallel(
    settings: Sequence[Setting], axes: Sequence[Axis], what: str, caption: str, folder: Path
) -> list[Path]:
    """Every setting as a line through its options; the best tenth in front."""
    good = finished(settings)
    scales = [Scale(axis, [s.options[axis.name] for s in settings]) for axis in axes]
    top = limit_of(settings)
    figure, (panel,) = figures.new_figure(1, width=max(8.0, 2.2 * (1 + len(axes))))
    panel.grid(False)
    ends = [span([scale.place(value) for value in scale.ordered]) for scale in scales]
    scores = [math.log10(min(setting.mean, top)) for setting in good]  # best first
    ends.append(span(scores))
    front = max(1, len(good) // 10)
    for rank, (setting, value) in reversed(list(enumerate(zip(good, scores, strict=True)))):
        places = [scale.place(setting.options[scale.name]) for scale in scales] + [value]
        heights = [(p - low) / (high - low) for p, (low, high) in zip(places, ends, strict=True)]
        leading = rank < front
        panel.plot(
            range(len(heights)),
            heights,
            color=BLUE if leading else GREY,
            alpha=0.9 if leading else 0.25,
            linewidth=1.8 if leading else 0.8,
            zorder=3 if leading else 2,
        )
    for place, scale in enumerate(scales):
        panel.axvline(place, color="black", linewidth=0.8)
        low, high = ends[place]
        for value in scale.ticks():
            height = (scale.place(value) - low) / (high - low)
            panel.text(place + 0.03, height, show(value), fontsize=8, va="center")
    panel.axvline(len(scales), color="black", linewidth=0.8)
    for value in (min(scores), max(scores)):
        height = (value - ends[-1][0]) / (ends[-1][1] - ends[-1][0])
        panel.text(len(scales) + 0.03, height, f"{10**value:.4g}", fontsize=8, va="center")
    panel.set_xticks(range(len(scales) + 1), [*(scale.name for scale in scales), what], fontsize=9)
    panel.set_xlim(-0.2, len(scales) + 0.5)
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    number = f"the best {front}" if front > 1 else "the best one"
    panel.set_title(f"{len(good)} settings, {number} in blue")
    figure.supxlabel(caption, fontsize=8, x=0.01, ha="left")
    return figures.save(figure, folder, "sweep_parallel")


def span(places: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, apart from each other."""
    low, high = min(places), max(places)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
