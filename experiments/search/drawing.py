"""Figures of a sweep: the score against each option, two options as a map, all options at once."""

import math
import textwrap
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
LOST_AT, BEYOND_AT = 0.985, 0.955  # heights of marks at the upper border, of a panel's
LEAST_TICKS = 3


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
      caption: how it was made, a line; what is drawn each figure says itself.
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
        others = [axis.name for axis in shown if axis not in pair]
        paths += plot_map(settings, pair, others, what, caption, folder)
    if len(shown) >= 3:
        paths += plot_parallel(settings, shown, what, caption, folder)
    return paths


def count_values(settings: Sequence[Setting], axis: Axis) -> int:
    return len({setting.options[axis.name] for setting in settings})


def finished(settings: Sequence[Setting]) -> list[Setting]:
    return [setting for setting in settings if setting.scores]


def say_seeds(settings: Sequence[Setting], mean: str = "mean") -> str:
    """Over how many seeds a setting is averaged."""
    counts = {len(setting.scores) for setting in finished(settings)}
    least, most = min(counts), max(counts)
    if most == 1:
        return "one seed a setting"
    return f"{mean} over {most if least == most else f'{least} to {most}'} seeds"


def write_caption(figure: Any, *parts: str) -> None:
    """At the lower left, in as many lines as it takes."""
    text = textwrap.fill("; ".join(part for part in parts if part), int(15 * figure.get_figwidth()))
    figure.supxlabel(text, fontsize=8, x=0.01, ha="left")


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
        self.whole = numbers and all(isinstance(v, int) for v in unique)
        self.joined = numbers and not self.drawn  # by a line

    def place(self, value: Any) -> float:
        """Of a value on its axis."""
        if self.even:
            return float(self.ordered.index(value))
        return math.log10(value) if self.log else float(value)

    def ends(self) -> tuple[float, float]:
        """Of its axis: room beside the outermost values, more where they are few categories."""
        low, high = span([self.place(value) for value in self.ordered])
        room = (0.2 if self.even and len(self.ordered) <= 3 else 0.05) * (high - low)
        return low - room, high + room

    def ticks(self) -> list[Any]:
        """The values themselves where they are few, else round ones between their ends."""
        if self.listed:
            return self.ordered[:: math.ceil(len(self.ordered) / MOST_TICKS)]
        low, high = self.ordered[0], self.ordered[-1]
        if not self.log:
            round_ones = MaxNLocator(5, integer=self.whole).tick_values(low, high)
            return [v for v in round_ones if low <= v <= high]
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        digits = (1, 2, 5) if last - first <= 2 else (1,)
        round_logs = [d * 10.0**decade for decade in range(first, last + 1) for d in digits]
        return [v for v in round_logs if low <= v <= high] or [low, high]

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
    figure, panels = figures.new_figure(len(axes), width=max(8.0, 4.2 * len(axes)) + 1.6)
    top = limit_of(settings)
    low, high = view_of(settings)
    cut: list[bool] = []  # for each interval that is drawn: whether it goes beyond the panel
    for panel, axis in zip(panels, axes, strict=True):
        if panel is not panels[0]:
            panel.sharey(panels[0])
            panel.tick_params(labelleft=False)
        scale = Scale(axis, [setting.options[axis.name] for setting in settings])
        runs = [
            (scale.place(setting.options[axis.name]), value)
            for setting in finished(settings)
            for value in setting.scores
        ]
        shown = [(x, math.log10(value)) for x, value in runs if 0 < value <= top]
        panel.plot(*zip(*shown, strict=True), "o", label="a run", **DOT)
        intervals = draw_profile(panel, settings, scale, top)
        cut += [below < low or above > high for below, above in intervals]
        beyond = [x for x, value in runs if value > top]
        mark_border(panel, beyond, BEYOND_AT, "^", GREY, f"{say_runs(len(beyond))} above {top:.4g}")
        lost = [
            scale.place(setting.options[axis.name]) for setting in settings if setting.unfinished
        ]
        mark_border(panel, lost, LOST_AT, "x", RED, "diverged or failed")
        scale.label(panel.set_xticks)
        panel.set_xlim(*scale.ends())
        panel.set(xlabel=axis.name + (", logarithmic" if scale.log else ""))
    panels[0].set_ylim(low, high)
    label_scores(panels[0], low, high)
    panels[0].set_ylabel(what)
    named: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend([*named.values()], [*named], fontsize=9, loc="outside right upper")
    title = textwrap.fill(finding, int(9 * figure.get_figwidth()))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    drawn = any(not axis.values for axis in axes)
    listed = any(axis.values for axis in axes)
    points = "each setting" if drawn else ""
    if listed:
        points += ", of listed values the best one" if drawn else "the best setting at each value"
    over = say_seeds(settings, "geometric mean")
    if cut:
        over += ", with its 95 % t interval" + (" (cut at the border)" if any(cut) else "")
    write_caption(figure, caption, f"blue: {points}, {over}")
    return figures.save(figure, folder, "sweep")


def say_runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def mark_border(
    panel: Any, places: Sequence[float], height: float, sign: str, colour: str, label: str
) -> None:
    """Marks at a panel's upper border; no lines, by which limits are found."""
    if places:
        panel.scatter(
            places,
            np.full(len(places), height),
            marker=sign,
            s=30,
            color=colour,
            transform=panel.get_xaxis_transform(),
            label=label,
            zorder=4,
        )


def limit_of(settings: Sequence[Setting]) -> float:
    """Scores above this are only marked: a bad run would press the others together.

    Where the worst is not far beyond it is the limit, and nothing is cut off.
    """
    values = np.asarray([value for setting in settings for value in setting.scores])
    upper = np.quantile(values, 0.75, method="lower")  # a score, not one between good and bad
    limit = float(max(upper * 1.5, values.min() * 3))
    worst = float(values.max())
    return worst if worst <= 2 * limit else limit


def view_of(settings: Sequence[Setting]) -> tuple[float, float]:
    """log10 of the least and the largest score shown, with room; more above, for the marks."""
    top = limit_of(settings)
    logs = [
        math.log10(value) for setting in settings for value in setting.scores if 0 < value <= top
    ]
    room = max(max(logs) - min(logs), 0.05) if logs else 0.5
    return (min(logs) - 0.12 * room, max(logs) + 0.16 * room) if logs else (0.0, 1.0)


def label_scores(panel: Any, low: float, high: float) -> None:
    """Label a y axis that shows log10 of scores between two ends, with some ticks at least."""
    figures.label_log10(panel)
    panel.set_ylim(low, high)
    if sum(low <= place <= high for place in panel.get_yticks()) < LEAST_TICKS:
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(10**low, 10**high)
        inside = [value for value in ticks if value > 0 and low <= math.log10(value) <= high]
        panel.set_yticks(np.log10(inside), [f"{value:g}" for value in inside])
        panel.set_ylim(low, high)


def draw_profile(
    panel: Any, settings: Sequence[Setting], scale: Scale, top: float
) -> list[tuple[float, float]]:
    """At each value the setting of least mean, over all other options, with its seeds' interval.

    Of values that were drawn no two are alike: each setting's mean.

    Args:
      top: means above it are marked at the border.

    Returns:
      The ends of the intervals that are drawn, log10.
    """
    best: dict[Any, Setting] = {}
    for setting in finished(settings):  # best first
        best.setdefault(setting.options[scale.name], setting)
    values = sorted(best, key=scale.place)
    bands = [seed_band(np.log10(np.asarray(best[value].scores))) for value in values]
    x = np.asarray([scale.place(value) for value in values])
    mean, low, high = (np.asarray([getattr(b, f) for b in bands]) for f in ("mean", "low", "high"))
    label = "a setting" if scale.drawn else "best at this value"
    panel.plot(x, mean, "o-" if scale.joined else "o", color=BLUE, label=label, zorder=3)
    mark_border(panel, [*x[mean > math.log10(top)]], BEYOND_AT, "^", BLUE, "")
    known = np.isfinite(low)
    if scale.drawn or not known.any():
        return []
    if scale.joined and len(x) > 1:
        panel.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0)
    else:
        panel.vlines(x[known], low[known], high[known], color=BLUE, alpha=0.4, linewidth=3)
    return [*zip(low[known], high[known], strict=True)]


def plot_map(
    settings: Sequence[Setting],
    pair: Sequence[Axis],
    others: Sequence[str],
    what: str,
    caption: str,
    folder: Path,
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
    top = limit_of(settings)
    low, high = span([math.log10(min(found)), math.log10(min(max(found), top))])
    colours: dict[str, Any] = {"cmap": "viridis_r", "vmin": low, "vmax": high}
    draw = draw_field if len(across.ordered) * len(up.ordered) <= 4 * len(least) else draw_dots
    drawn = draw(panel, across, up, least, colours)
    beyond = max(found) > top
    bar = figure.colorbar(drawn, ax=panel, extend="max" if beyond else "neither")
    figures.label_log10_bar(bar, what)
    panel.set(xlabel=across.name, ylabel=up.name)
    over = f"least over {' and '.join(others)}" if others else "every setting"
    if len(others) > 2:
        over = "least over the other options"
    panel.set_title(f"{what}: {over}", fontsize=11)
    write_caption(
        figure,
        caption,
        say_seeds(settings),
        f"one colour for all above {top:.4g}" if beyond else "",
        "✗: none finished" if len(found) < len(least) else "",
    )
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
    worst = max(setting.mean for setting in good)
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
        more = "≥ " if value == max(scores) and worst > top else ""
        panel.text(len(scales) + 0.03, height, f"{more}{10**value:.4g}", fontsize=8, va="center")
    panel.set_xticks(range(len(scales) + 1), [*(scale.name for scale in scales), what], fontsize=9)
    panel.set_xlim(-0.2, len(scales) + 0.5)
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    number = f"the best {front}" if front > 1 else "the best one"
    panel.set_title(f"{len(good)} settings, {number} in blue")
    write_caption(figure, caption, f"a line: a setting, {say_seeds(settings)}")
    return figures.save(figure, folder, "sweep_parallel")


def span(places: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, apart from each other."""
    low, high = min(places), max(places)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
