"""What a study found: a row for each variant, a table of them, and a sentence."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.ablate.record import FINAL, Records
from experiments.ablate.studies import Study, Variant
from experiments.ablate.verdicts import Effect, holm, interval, paired_effect, verdict
from lm.gradients.statistics import E_FOLD, horizon, slope_per_step

Rows = list[dict[str, Any]]
Arrays = dict[str, np.ndarray]
TOO_FAR = 1.5  # a ratio beyond which it is said as a factor and not in per cent


def logs_of(records: Records, variant: str, split: str) -> np.ndarray:
    """The log of a variant's perplexity or loss on the fresh seeds, by seed; inf: diverged."""
    runs = sorted(records.of(variant, FINAL), key=lambda record: record.seed)
    return np.asarray([getattr(record, split) for record in runs], float)


def summarise(records: Records, variants: list[Variant], steps: Mapping[str, int]) -> Rows:
    """A row for each variant: its loss, its effect beside the baseline, its gradient flow.

    Args:
      steps: of training, by variant.
    """
    rows: Rows = []
    tests = [logs_of(records, variant.name, "test") for variant in variants]
    seeds = max(len(test) for test in tests)
    baseline, *others = (test if len(test) else np.full(seeds, np.inf) for test in tests)
    effects = [paired_effect(other, baseline) for other in others]
    adjusted = holm(np.asarray([effect.p for effect in effects]))
    beside = [(None, math.nan), *zip(effects, adjusted, strict=True)]
    for variant, (effect, p) in zip(variants, beside, strict=True):
        found = records.of(variant.name, FINAL)
        row: dict[str, Any] = {
            "variant": variant.name,
            "label": variant.label,
            "parameters": found[0].parameters if found else None,
            "steps": steps[variant.name],
            "learning_rate": records.best_rate(variant.name),
            "rate_at_edge": at_edge(records, variant.name),
            "diverged": sum(record.diverged_at is not None for record in found),
        }
        for split in ("valid", "test"):
            mean, half = interval(logs_of(records, variant.name, split))
            row[split], row[f"{split}_within"] = exp(mean), exp(half)
        row |= compare(variant, effect, p)
        rows.append(row | gradient_flow(records, variant.name))
    return rows


def compare(variant: Variant, effect: Effect | None, p: float) -> dict[str, Any]:
    """A variant beside the baseline; None in every field for the baseline itself."""
    if effect is None:
        fields = ("ratio", "ratio_low", "ratio_high", "p", "p_holm", "verdict", "published")
        return dict.fromkeys(fields)
    return {
        "ratio": exp(effect.mean),
        "ratio_low": exp(effect.low),
        "ratio_high": exp(effect.high),
        "p": effect.p,
        "p_holm": float(p),
        "verdict": verdict(effect, float(p)),
        "published": variant.published,
    }


def exp(log: float) -> float:
    """e^log, inf beyond a float's range: the interval of two seeds may be that wide."""
    return math.exp(log) if not log > 700 else math.inf


def at_edge(records: Records, variant: str) -> bool:
    """Whether the best rate is the least or the largest tried: a wider grid may have a better."""
    rates = list(records.tuning_losses(variant))
    return len(rates) > 1 and records.best_rate(variant) in (rates[0], rates[-1])


def curves_of(records: Records, variant: str, stage: str) -> np.ndarray:
    """Lag curves [S, lags] at "init" or "trained", of the seeds that did not diverge."""
    curves = [getattr(record, f"lags_{stage}") for record in records.of(variant, FINAL)]
    return np.asarray([curve for curve in curves if curve])


def gradient_flow(records: Records, variant: str) -> dict[str, Any]:
    """Slope per step and horizon at the start and after training, means over seeds."""
    row: dict[str, Any] = {}
    for stage in ("init", "trained"):
        curves = curves_of(records, variant, stage)
        if not len(curves):
            continue
        slope, half = interval(np.asarray([slope_per_step(curve) for curve in curves]))
        row |= {
            f"slope_{stage}": slope,
            f"slope_{stage}_within": half,
            f"horizon_{stage}": horizon(curves.mean(axis=0), E_FOLD),
        }
    return row


def arrays_of(records: Records, variants: list[Variant]) -> Arrays:
    """What figures draw: logs by seed, lag curves, and tuning losses by rate."""
    arrays: Arrays = {}
    for name in (variant.name for variant in variants):
        arrays[f"{name}/test"] = logs_of(records, name, "test")
        for stage in ("init", "trained"):
            arrays[f"{name}/lags_{stage}"] = curves_of(records, name, stage)
        tuned = records.tuning_losses(name)
        arrays[f"{name}/rates"] = np.asarray(list(tuned))
        arrays[f"{name}/tuning"] = np.asarray(list(tuned.values()))
    return arrays


def say_ratios(*ratios: float) -> list[str]:
    """0.97 as "-3.0 %", or where one of them is far from 1 all as factors, 1.6 as "x 1.60"."""
    near = all(math.isnan(ratio) or 1 / TOO_FAR < ratio < TOO_FAR for ratio in ratios)
    return [
        "-" if math.isnan(ratio) else f"{100 * (ratio - 1):+.1f} %" if near else f"x {ratio:.3g}"
        for ratio in ratios
    ]


def say_p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def format_table(rows: Rows, study: Study, on_task: bool) -> str:
    """The table that a run prints and keeps: effects and verdicts, then rates and gradient flow."""
    quoted = any(row["published"] for row in rows)
    effects = [["", "loss" if on_task else "perplexity", "against first", "95 % interval"]]
    effects[0] += ["p, Holm", "verdict", *([study.source] if quoted else [])]
    traits = [["", "parameters", "steps", "rate"]]
    traits[0] += ["slope, start", "trained", "horizon, start", "trained"]
    for row in rows:
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        flow = [f"{row.get(f'slope_{stage}', math.nan):.3f}" for stage in ("init", "trained")]
        flow += [say_horizon(row.get(f"horizon_{s}", math.nan)) for s in ("init", "trained")]
        edge = "*" if row["rate_at_edge"] else " "
        sizes = [f"{row[name] or 0:,}" for name in ("parameters", "steps")]
        traits.append([row["label"], *sizes, rate + edge, *flow])
        line = [row["label"], say_score(row["test"], on_task)]
        if not row["verdict"] and row["diverged"]:
            line += ["", "", "", say_verdict(row)]
        if row["verdict"]:
            mean, low, high = say_ratios(row["ratio"], row["ratio_low"], row["ratio_high"])
            line += [mean, f"{low} to {high}", say_p(row["p_holm"]), say_verdict(row)]
            line += [row["published"]] if quoted else []
        effects.append(line + [""] * (len(effects[0]) - len(line)))
    return f"{align(effects, words=(0, 5, 6))}\n\n{align(traits, words=(0,))}"


def align(table: list[list[str]], words: tuple[int, ...]) -> str:
    """Rows of cells as lines of columns: those named in `words` to the left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "   ".join(
            cell.ljust(width) if k in words else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def say_score(score: float, on_task: bool) -> str:
    if math.isnan(score):
        return "-"
    return f"{score:.3g}" if on_task else f"{score:.2f}"


def say_verdict(row: dict[str, Any]) -> str:
    lost = f"({row['diverged']} div.)" if row["diverged"] else ""
    return f"{row['verdict'] or ''} {lost}".strip()


def say_horizon(steps: float) -> str:
    if math.isnan(steps):
        return "-"
    return f"{steps:.1f}" if math.isfinite(steps) else "beyond"


def footnote(
    seeds: int, tuning_seeds: int, rows: Rows, study: Study, blind: float | None = None
) -> str:
    """How the table is to be read.

    Args:
      blind: of a task, the loss of the best answer that sees nothing.
    """
    edge = "; * the best rate is at the edge of the grid, so a better one may lie beyond"
    edge = edge if any_edge(rows) else ""
    lost = any(row["diverged"] for row in rows)
    which = f"{seeds} seeds"
    if lost:
        which = f"those of {which} that did not diverge (div.: how many did)"
    others = f"{tuning_seeds} other{'s' * (tuning_seeds > 1)}"
    text = (
        f"Means over {which} at the rate that was best on {others}{edge}. "
        "Differences are paired by seed, in logarithms; p is a paired t test's after Holm's "
        "correction for all comparisons of the table, real below 0.05. Slope: natural log of "
        "||dL_T/dh_t|| per step back; horizon: steps beyond the first until it has fallen by 1/e."
    )
    if blind is not None:
        text += f" The best answer that sees nothing has a loss of {blind:.4g}."
    elif len({row["steps"] for row in rows}) > 1:
        text += (
            " All read as many tokens, those with longer chunks in fewer steps: where steps are "
            "few, that alone may make a difference."
        )
    text += f" {study.remark}" * bool(study.remark)
    return textwrap.fill(text, 100)


def any_edge(rows: Rows) -> bool:
    return any(row["rate_at_edge"] for row in rows)


def headline(rows: Rows, on_task: bool) -> str:
    """What is real, largest first, and what is not shown, in a sentence."""
    measured = "loss" if on_task else "perplexity"
    if any(row["verdict"] == "no baseline" for row in rows):
        return f"{rows[0]['label']} diverged: there is nothing to compare with"
    tested = [row for row in rows[1:] if not math.isnan(row["p"])]
    real = [row for row in tested if row["verdict"] != "no difference shown"]
    real.sort(key=lambda row: -abs(math.log(row["ratio"])))
    parts = [f"{row['label']} {say_ratios(row['ratio'])[0]}" for row in real]
    said = (
        f"Against {rows[0]['label']}, {measured} really differs: {', '.join(parts)}"
        if real
        else f"No difference in {measured} from {rows[0]['label']} is shown"
    )
    if any(row["rate_at_edge"] for row in (rows[0], *real)) and real:
        said += " (some best rates are at the edge of the grid)"
    rest = [row["label"] for row in tested if row not in real]
    if real and rest:
        said += f"; not shown {', '.join(rest)}"
    lost = [f"{row['label']} {row['verdict']}" for row in rows[1:] if row not in tested]
    return said + (f"; {', '.join(lost)}" if lost else "")
