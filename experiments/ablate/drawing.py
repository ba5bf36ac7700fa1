"""The figures of a study, drawn from the run's folder alone."""

import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments import figures, run_folder
from experiments.ablate.summary import TOO_FAR, any_edge, say_ratios
from experiments.fit.drawing import describe_bias, describe_scale
from experiments.page.svg import words
from lm.gradients.statistics import seed_band
from lm.task_lengths import LEAST_STEPS

LOG10 = math.log(10)
REAL, NOT_SHOWN = "#0072B2", "#8F8F8F"
MOST_BANDS = 4  # in one panel; more cover each other
TICK_ROOM = 0.14  # of the axis that a tick's label takes
MOST_POWERS = 6  # of ten that are labelled
BELOW_1 = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
RATIOS = (*BELOW_1, 1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10)
BASELINE, STAND_IN = "#000000", "#661100"  # the latter for a variant whose own colour is black
START = "#8F8F8F"
OFFSET = 0.13  # of a point at the start above its row, of one after training below it


class Results(NamedTuple):
    """What a run's folder holds."""

    config: dict[str, Any]
    results: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.results["rows"]
        return rows

    @property
    def on_task(self) -> bool:
        return self.config["data"]["corpus"] in LEAST_STEPS

    @property
    def measured(self) -> str:
        return "loss" if self.on_task else "perplexity"


def plot(folder: Path) -> list[Path]:
    """PNG files, the main one first."""
    results = Results(
        run_folder.read_json(folder / "config.json")["config"],
        run_folder.read_json(folder / "results.json"),
        run_folder.read_arrays(folder / "results.npz"),
    )
    drawn = {"ablation": plot_forest, "lag_curves": plot_lags, "rates": plot_rates}
    return [
        figures.save(draw(results), folder / "figures", name)[0] for name, draw in drawn.items()
    ]


def colours(results: Results) -> dict[str, Any]:
    """The baseline black; a cell's own colour where variants are cells, else a series."""
    baseline, *others = (row["variant"] for row in results.rows)
    if {baseline, *others} <= set(figures.COLOURS):
        own = [figures.colour(name) for name in others]
        series = [STAND_IN if colour == BASELINE else colour for colour in own]
    else:
        series = figures.shades(len(others))
    return dict(zip([baseline, *others], [BASELINE, *series], strict=True))


def number(value: Any) -> float:
    """A number as JSON keeps it: null is NaN."""
    return math.nan if value is None else float(value)


EFFECT = ("ratio", "ratio_low", "ratio_high")


def log(ratio: float) -> float:
    """Natural; an interval of few seeds may end at 0."""
    return math.log(ratio) if ratio > 0 else -math.inf if ratio == 0 else math.nan


def plot_forest(results: Results) -> Any:
    """Each variant's effect with its interval, and its gradient flow beside it."""
    rows = [row for row in results.rows if row["verdict"]]
    rows.sort(key=lambda row: -nan_last(row["ratio"]))
    first = results.rows[0]
    figure, (left, right) = figures.new_figure(2, width=14, height=2.1 + 0.42 * len(results.rows))
    effects = [[log(number(row[key])) for key in EFFECT] for row in rows]
    factors = label_ratios(left, [log for effect in effects for log in effect])
    low, high = left.get_xlim()
    places = range(1, len(rows) + 1)
    for place, row, (mean, *ends) in zip(places, rows, effects, strict=True):
        if math.isnan(mean):
            left.text(0, place, f"  {row['verdict']}", va="center", color=NOT_SHOWN)
            continue
        real = row["verdict"] in ("worse", "better")
        colour = REAL if real else NOT_SHOWN
        if math.isnan(ends[1]) and not math.isnan(ends[0]):
            ends[1] = math.inf  # beyond a float's range, which JSON keeps as null
        at, *ends = np.clip([mean, *ends], low, high)
        left.plot(ends, [place] * 2, color=colour, linewidth=2.2)
        face = colour if real else "white"
        left.plot(at, place, "o", color=colour, markerfacecolor=face, markersize=7)
        left.annotate(
            f"x {number(row['ratio']):.3g}" if factors else say_ratios(number(row["ratio"]))[0],
            (at, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )
    left.plot(0, 0, "s", color="black", markersize=7)
    left.axvline(0, color="black", linewidth=0.8, zorder=1)
    left.set_ylim(-0.6, len(rows) + 0.7)
    labels = [say_label(row) for row in (first, *rows)]
    left.set_yticks([0, *places], [f"{labels[0]} (baseline)", *labels[1:]])
    left.set_xlabel(
        f"test {results.measured} against the baseline's\nfilled: p < 0.05 after Holm's correction",
        fontsize=10,
    )
    left.set_title(results.results["question"])
    draw_slopes(right, [first, *rows])
    title = textwrap.fill(results.results["finding"], 105)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    edge = "* the best rate is at the edge of the grid" if any_edge(results.rows) else ""
    caption(figure, results, say_seeds(results), "95 % t intervals", last=edge)
    return figure


def say_label(row: dict[str, Any]) -> str:
    """A variant's, with a star where a wider grid of rates may have a better one."""
    return row["label"] + "*" * bool(row["rate_at_edge"])


def say_seeds(results: Results) -> str:
    others = results.config["tuning_seeds"]
    return (
        f"{results.config['seeds']} seeds a variant, rates tuned on {others} "
        f"other{'s' * (others > 1)}"
    )


def nan_last(value: Any) -> float:
    found = number(value)
    return math.inf if math.isnan(found) else found


def label_ratios(axis: Any, logs: list[float]) -> bool:
    """Let an x axis show logarithms of ratios from end to end, with ratios at its ticks.

    Returns:
      Whether they are said as factors and not in per cent.
    """
    known = [log for log in logs if math.isfinite(log)]
    low, high = min([0.0, *known]), max([0.0, *known])
    if high == low:
        low, high = low - 0.1, high + 0.1
    spare = 0.08 * (high - low)
    axis.set_xlim(low - spare, high + spare)
    factors = bool(max(-low, high) > math.log(TOO_FAR))
    if high - low > math.log(20):
        powers = powers_of_ten(low / LOG10, high / LOG10, MOST_POWERS)
        axis.set_xticks([p * LOG10 for p in powers], [say_power(p) for p in powers])
        return factors
    ticks = [0.0]  # the baseline, and from it outward what there is room for
    for tick in sorted((log(ratio) for ratio in RATIOS), key=abs):
        apart = min(abs(tick - other) for other in ticks) > TICK_ROOM * (high - low + 2 * spare)
        if low <= tick <= high and apart:
            ticks.append(tick)
    if factors:
        labels = [f"x {math.exp(tick):.3g}" for tick in ticks]
    else:
        labels = [f"{100 * math.expm1(tick):+.0f} %" if tick else "0" for tick in ticks]
    axis.set_xticks(ticks, labels)
    return factors


def powers_of_ten(low: float, high: float, most: int) -> list[int]:
    """Whole numbers from low to high, multiples of the least step that keeps them few."""
    first, last = math.ceil(low), math.floor(high)
    step = 1
    while last // step - -(-first // step) + 1 > most:
        step += 1
    return [p for p in range(first, last + 1) if p % step == 0]


def say_power(power: int) -> str:
    """Of ten, as a factor."""
    return f"x {10.0**power:g}" if abs(power) <= 2 else f"x $10^{{{power}}}$"


def draw_slopes(axis: Any, rows: list[dict[str, Any]]) -> None:
    """The slope of the lag curve before and after training, a line a variant."""
    found = []
    stages = (
        ("init", "at the start", OFFSET, START, "white"),
        ("trained", "trained", -OFFSET, "black", "black"),
    )
    for place, row in enumerate(rows):
        both = [number(row.get(f"slope_{stage}")) for stage, *_ in stages]
        found += both
        axis.plot(both, [place + OFFSET, place - OFFSET], color="#CCCCCC", linewidth=1.2, zorder=1)
        for slope, (stage, name, above, colour, face) in zip(both, stages, strict=True):
            half = number(row.get(f"slope_{stage}_within"))
            axis.errorbar(
                slope,
                place + above,
                xerr=None if math.isnan(half) else half,
                fmt="o",
                color=colour,
                markerfacecolor=face,
                markersize=6,
                capsize=2,
                label=name if place == 0 else None,
            )
    axis.set_yticks(range(len(rows)), [""] * len(rows))
    axis.set_ylim(-0.6, len(rows) - 0.3)
    axis.set_xlabel(
        r"slope of $\ln\|\partial L_T/\partial h_t\|$ per step back (0: none is lost)", fontsize=10
    )
    grows = any(slope > 0 for slope in found)
    axis.set_title("How fast the gradient vanishes" + " (or grows)" * grows)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def plot_lags(results: Results) -> Any:
    """The lag curves of every variant, before and after training, on one scale."""
    figure, axes = figures.new_figure(2, width=15, height=5.6)
    axes[1].sharey(axes[0])
    axes[1].tick_params(labelleft=False)
    banded = len(results.rows) <= MOST_BANDS and results.config["seeds"] > 1
    means, ends, repeated = [], [], False
    for axis, stage, title in zip(
        axes, ("init", "trained"), ("At the start", "After training"), strict=True
    ):
        curves = {
            row["variant"]: found - found[:, 1:2]
            for row in results.rows
            if (found := results.arrays[f"{row['variant']}/lags_{stage}"]).size
        }
        leaders = same_as(curves)
        alone = len(curves) > 1 and len(set(leaders.values())) == 1
        for row in results.rows:
            name = row["variant"]
            if name not in curves or (alone and name != leaders[name]):
                continue
            band = seed_band(curves[name][:, 1:])
            repeats = leaders[name] != name
            repeated |= repeats
            means += [band.mean]
            if banded and not repeats:
                ends += [band.low, band.high]
            else:
                band = band._replace(low=band.low * np.nan, high=band.high * np.nan)
            figures.plot_band(
                axis,
                np.arange(1, curves[name].shape[1]),
                *band,
                color=colours(results)[name],
                label=row["label"],
                linewidth=2.8 if row is results.rows[0] else 1.6,
                linestyle=(0, (4, 4)) if repeats else "-",
            )
        axis.set_title(title + ": all variants are the same" * alone)
        axis.set_xlabel("lag: steps before the last")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = view_of(means, ends)
    label_powers(axes[0], low / LOG10, high / LOG10)
    axes[0].set_ylabel(r"$\|\partial L_T/\partial h_{T-lag}\|$, relative to lag 1")
    named: dict[str, Any] = {}
    for axis in reversed(axes):  # at the start one may stand for all
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    axes[1].legend(
        [*named.values()], [*named], fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    figure.suptitle(
        "How much of the last step's loss reaches back", x=0.01, ha="left", fontweight="bold"
    )
    known = np.concatenate(ends) if ends else np.empty(0)
    known = known[np.isfinite(known)]
    bands = "no bands, which would cover each other" if results.config["seeds"] > 1 else ""
    if len(known):
        beyond = known.min() < low or known.max() > high
        bands = "bands: 95 % t intervals" + ", cut where they leave the panel" * bool(beyond)
    dashed = "dashed: as the curve below it" if repeated else ""
    caption(figure, results, "geometric means over seeds", bands, dashed, say_seeds(results))
    return figure


def same_as(curves: dict[str, np.ndarray]) -> dict[str, str]:
    """Of each variant the first whose curves are the same [S, lags]."""
    leaders: dict[str, str] = {}
    for name, curve in curves.items():
        leaders[name] = next(
            (
                other
                for other in dict.fromkeys(leaders.values())
                if curves[other].shape == curve.shape
                and np.allclose(curves[other], curve, rtol=1e-4, atol=1e-4, equal_nan=True)
            ),
            name,
        )
    return leaders


def view_of(means: list[np.ndarray], ends: list[np.ndarray]) -> tuple[float, float]:
    """y limits: all means, and of bands what lies within half of the means' range beyond."""
    mean, end = (
        values[np.isfinite(values)] if len(values) else np.empty(0)
        for values in (np.concatenate([*arrays, np.empty(0)]) for arrays in (means, ends))
    )
    if not len(mean):
        return -1.0, 1.0
    size = max(float(np.ptp(mean)), 0.2)
    both = np.concatenate([mean, end])
    low = max(both.min(), mean.min() - size / 2) - 0.04 * size
    high = min(both.max(), mean.max() + size / 2) + 0.04 * size
    return float(low), float(high)


def label_powers(axis: Any, low: float, high: float) -> None:
    """Limits and ticks of a y axis that shows log10: powers, or 1-2-5, or evenly spaced values."""
    if high - low > 3 or high > 300:  # of which a float cannot hold the value
        powers = powers_of_ten(low, high, 9)
        axis.set_yticks(powers, [f"$10^{{{power}}}$" for power in powers])
    else:
        values = list(MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(10**low, 10**high))
        if high - low > 0.8:
            decades = range(math.floor(low), math.ceil(high) + 1)
            values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        inside = [value for value in values if value > 0 and low <= math.log10(value) <= high]
        axis.set_yticks(np.log10(inside), [f"{value:g}" for value in inside])
    axis.set_ylim(low, high)


def plot_rates(results: Results) -> Any:
    """The loss against the learning rate: what the tuning saw."""
    figure, (axis,) = figures.new_figure(1, width=9.5)
    lost = False
    for row in results.rows:
        rates = results.arrays[f"{row['variant']}/rates"]
        losses = results.arrays[f"{row['variant']}/tuning"]
        if not losses.size:
            continue
        mean = np.where(np.isfinite(losses).all(axis=1), losses.mean(axis=1), np.nan) / LOG10
        lost |= bool(np.isnan(mean).any())
        colour = colours(results)[row["variant"]]
        axis.plot(rates, mean, "o-", color=colour, label=say_label(row), markersize=4)
        chosen = rates == number(row["learning_rate"])
        axis.scatter(
            rates[chosen], mean[chosen], s=90, facecolors="none", edgecolors=colour, linewidths=1.5
        )
    axis.set_xscale("log")
    tried = sorted({r for row in results.rows for r in results.arrays[f"{row['variant']}/rates"]})
    axis.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axis.minorticks_off()
    label_powers(axis, *axis.get_ylim())
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"validation {results.measured}")
    missing = "; a point is missing where a run diverged" if lost else ""
    axis.set_title(f"Each variant at each rate of the grid, its best in a ring{missing}")
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    seeds = results.config["tuning_seeds"]
    over = f"means over {seeds} tuning seeds" if seeds > 1 else "one tuning seed"
    edge = "* the best rate is at the edge of the grid" if any_edge(results.rows) else ""
    caption(figure, results, over, last=edge)
    return figure


def caption(figure: Any, results: Results, *drawn: str, last: str = "") -> None:
    """What is drawn, what was trained, and on a line of its own what a sign means."""
    config = results.config
    model, data, optim = config["model"], config["data"], config["optim"]
    corpus = Path(data["corpus"]).name
    size = f"H = {model['hidden_size']}"
    if results.on_task:
        read = f"{words(corpus)}, T = {config['lags']}, {config['steps']:,} steps of Adam"
    else:
        rule = figures.RULES[optim["optimizer"]]
        kept = f"{data['max_vocabulary']:,} words" if data["max_vocabulary"] else "all words"
        alike = len({row.get("steps") for row in results.rows}) == 1
        read = (
            f"{corpus}, {kept}, {rule} on {'' if alike else 'as many tokens as '}"
            f"{config['steps']:,} steps of {data['batch_size']} x {data['length']} tokens, "
            f"{optim['schedule']} schedule"
        )
    same = {  # study -> what is the same in all variants of any other
        "clipping": f"clip {optim['clip']:g}",
        "forget_bias": describe_bias(model),
        "init": "" if results.on_task else f"{describe_scale(model)} at the start",
    }
    parts = [*drawn, size, read]
    parts += [text for study, text in same.items() if study != config["study"]]
    text = textwrap.fill("; ".join(part for part in parts if part), int(10 * figure.get_figwidth()))
    figure.supxlabel("\n".join(filter(None, [text, last])), fontsize=9, color="#555555")
