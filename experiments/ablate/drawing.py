"""The figures of a study, drawn from the run's folder alone."""

import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments import figures, run_folder
from experiments.ablate.summary import say_ratios
from experiments.fit.drawing import describe_bias, describe_scale
from experiments.page.svg import words
from lm.gradients.statistics import seed_band
from lm.task_lengths import LEAST_STEPS

LOG10 = math.log(10)
REAL, NOT_SHOWN = "#0072B2", "#8F8F8F"
MOST_BANDS = 4  # in one panel; more cover each other
TICK_ROOM = 0.11  # of the axis that a tick's label takes
RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5)


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
    """A colour a variant: a cell's own where variants are cells, else black and a series."""
    names = [row["variant"] for row in results.rows]
    if set(names) <= set(figures.COLOURS):
        return {name: figures.colour(name) for name in names}
    return dict(zip(names, ["#000000", *figures.shades(len(names) - 1)], strict=True))


def number(value: Any) -> float:
    """A number as JSON keeps it: null is NaN."""
    return math.nan if value is None else float(value)


def plot_forest(results: Results) -> Any:
    """Each variant's effect with its interval, and its gradient flow beside it."""
    rows = [row for row in results.rows if row["verdict"]]
    rows.sort(key=lambda row: -nan_last(row["ratio"]))
    first = results.rows[0]
    figure, (left, right) = figures.new_figure(2, width=13, height=1.9 + 0.42 * len(results.rows))
    places = range(1, len(rows) + 1)
    for place, row in zip(places, rows, strict=True):
        mean, low, high = (number(row[key]) for key in ("ratio", "ratio_low", "ratio_high"))
        if math.isnan(mean):
            left.text(0, place, f"  {row['verdict']}", va="center", color=NOT_SHOWN)
            continue
        real = row["verdict"] in ("worse", "better")
        colour = REAL if real else NOT_SHOWN
        left.plot(np.log([low, high]), [place] * 2, color=colour, linewidth=2.2)
        face = colour if real else "white"
        left.plot(math.log(mean), place, "o", color=colour, markerfacecolor=face, markersize=7)
        left.annotate(
            say_ratios(mean)[0],
            (math.log(mean), place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=colour,
        )
    left.plot(0, 0, "s", color="black", markersize=7)
    left.axvline(0, color="black", linewidth=0.8)
    left.set_ylim(-0.6, len(rows) + 0.7)
    left.set_yticks([0, *places], [f"{first['label']} (baseline)", *(r["label"] for r in rows)])
    label_ratios(left)
    left.set_xlabel(f"test {results.measured} against the baseline's; filled: real after Holm")
    left.set_title(results.results["question"])
    draw_slopes(right, [first, *rows])
    title = textwrap.fill(results.results["finding"], 105)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    caption(figure, results)
    return figure


def nan_last(value: Any) -> float:
    found = number(value)
    return math.inf if math.isnan(found) else found


def label_ratios(axis: Any) -> None:
    """Ratios at the ticks of an axis that shows their logarithms."""
    low, high = axis.get_xlim()
    spare = 0.08 * (high - low)
    axis.set_xlim(low - spare, high + spare)
    if high - low > math.log(20):
        powers = range(math.ceil(low / LOG10), math.floor(high / LOG10) + 1)
        axis.set_xticks([p * LOG10 for p in powers], [f"x {10.0**p:g}" for p in powers])
        return
    here = [math.log(r) for r in RATIOS if low - spare <= math.log(r) <= high + spare]
    ticks = [0.0]  # the baseline, and from it outward what there is room for
    for tick in sorted(here, key=abs):
        if min(abs(tick - other) for other in ticks) > TICK_ROOM * (high - low):
            ticks.append(tick)
    axis.set_xticks(ticks, [f"{100 * math.expm1(tick):+.0f} %" if tick else "0" for tick in ticks])


def draw_slopes(axis: Any, rows: list[dict[str, Any]]) -> None:
    """The slope of the lag curve before and after training, a line a variant."""
    for place, row in enumerate(rows):
        both = [number(row.get(f"slope_{stage}")) for stage in ("init", "trained")]
        axis.plot(both, [place] * 2, color="#BBBBBB", linewidth=1.2, zorder=1)
        for slope, stage, face in zip(both, ("init", "trained"), ("white", "black"), strict=True):
            half = number(row.get(f"slope_{stage}_within"))
            axis.errorbar(
                slope,
                place,
                xerr=None if math.isnan(half) else half,
                fmt="o",
                color="black",
                markerfacecolor=face,
                markersize=6,
                capsize=2,
                label=("at the start", "trained")[stage == "trained"] if place == 0 else None,
            )
    axis.set_yticks(range(len(rows)), [""] * len(rows))
    axis.set_ylim(-0.6, len(rows) - 0.3)
    axis.set_xlabel(r"slope of $\ln\|\partial L_T/\partial h_t\|$ per step back (0: none is lost)")
    axis.set_title("How fast the gradient vanishes")
    axis.legend(loc="best", fontsize=9)


def plot_lags(results: Results) -> Any:
    """The lag curves of every variant, before and after training."""
    figure, axes = figures.new_figure(2, width=13, height=5.6)
    banded = len(results.rows) <= MOST_BANDS
    for axis, stage, title in zip(
        axes, ("init", "trained"), ("At the start", "After training"), strict=True
    ):
        for row in results.rows:
            curves = results.arrays[f"{row['variant']}/lags_{stage}"]
            if not curves.size:
                continue
            relative = curves - curves[:, 1:2]
            band = seed_band(relative[:, 1:])
            if not banded:
                band = band._replace(low=band.low * np.nan, high=band.high * np.nan)
            figures.plot_band(
                axis,
                np.arange(1, relative.shape[1]),
                *band,
                color=colours(results)[row["variant"]],
                label=row["label"],
                linewidth=2.4 if row is results.rows[0] else 1.6,
            )
        figures.label_log10(axis)
        axis.set_title(title)
        axis.set_xlabel("lag: steps before the last")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel(r"$\|\partial L_T/\partial h_{T-lag}\|$, relative to lag 1")
    axes[0].legend(fontsize=9, loc="lower left")
    figure.suptitle(
        "How much of the last step's loss reaches back", x=0.01, ha="left", fontweight="bold"
    )
    bands = ", 95 % t bands over seeds" if banded else " over seeds"
    caption(figure, results, f"geometric means{bands}")
    return figure


def plot_rates(results: Results) -> Any:
    """The loss against the learning rate: what the tuning saw."""
    figure, (axis,) = figures.new_figure(1, width=8.5)
    for row in results.rows:
        rates = results.arrays[f"{row['variant']}/rates"]
        losses = results.arrays[f"{row['variant']}/tuning"]
        if not losses.size:
            continue
        mean = np.where(np.isfinite(losses).all(axis=1), losses.mean(axis=1), np.nan)
        colour = colours(results)[row["variant"]]
        axis.plot(rates, mean / LOG10, "o-", color=colour, label=row["label"], markersize=4)
    axis.set_xscale("log")
    tried = sorted({r for row in results.rows for r in results.arrays[f"{row['variant']}/rates"]})
    axis.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axis.minorticks_off()
    figures.label_log10(axis)
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"validation {results.measured}")
    axis.set_title("Each variant at each rate of the grid; a point is missing where one diverged")
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption(figure, results, f"means over {results.config['tuning_seeds']} tuning seeds")
    return figure


def caption(figure: Any, results: Results, reduction: str = "") -> None:
    """What was trained, and over what is averaged."""
    config = results.config
    model, data, optim = config["model"], config["data"], config["optim"]
    corpus = Path(data["corpus"]).name
    others = config["tuning_seeds"]
    seeds = f"{config['seeds']} seeds a variant, rates tuned on {others} other{'s' * (others > 1)}"
    size = f"H = {model['hidden_size']}"
    if results.on_task:
        read = f"{words(corpus)}, T = {config['lags']}, {config['steps']:,} steps of Adam"
    else:
        rule = figures.RULES[optim["optimizer"]]
        kept = f"{data['max_vocabulary']:,} words" if data["max_vocabulary"] else "all words"
        read = (
            f"{corpus}, {kept}, {config['steps']:,} steps of {rule} on {data['batch_size']} x "
            f"{data['length']} tokens, {optim['schedule']} schedule"
        )
    same = {  # study -> what is the same in all variants of any other
        "clipping": f"clip {optim['clip']:g}",
        "forget_bias": describe_bias(model),
        "init": "" if results.on_task else f"{describe_scale(model)} at the start",
    }
    parts = [reduction, seeds, f"95 % t intervals; {size}", read]
    parts += [text for study, text in same.items() if study != config["study"]]
    text = textwrap.fill("; ".join(part for part in parts if part), 130)
    figure.supxlabel(text, fontsize=9, color="#555555")
