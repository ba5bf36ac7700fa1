"""What a sweep found: settings (points but for their seed), best first, as means over seeds."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.search.board import show
from experiments.search.space import Axis, each_field
from experiments.search.table import is_result
from lm.gradients.statistics import seed_band

SHOWN = 10
EDGE = 0.05  # of a range that is drawn from: this close to its end counts as there
ENDS = ("finished", "diverged", "failed", "refused")  # what becomes of a point


@dataclass(frozen=True)
class Setting:
    """Points that differ in their seed alone."""

    options: Mapping[str, Any]  # but for the seed
    scores: tuple[float, ...]  # of the finished ones, in the order of the seeds
    tests: tuple[float, ...]
    unfinished: int  # diverged or failed

    @property
    def mean(self) -> float:
        """Over the finished seeds; inf where there is none."""
        return float(np.mean(self.scores)) if self.scores else math.inf

    @property
    def half(self) -> float:
        """Half of the 95 % t interval of the mean; NaN for one seed."""
        if len(self.scores) < 2:
            return math.nan
        band = seed_band(np.asarray(self.scores))
        return float(band.high - band.mean)


def find_settings(rows: Sequence[Mapping[str, Any]], swept: Sequence[str], score: str) -> list[Any]:
    """Settings, best first: those whose seeds all finished, by their mean, then the others."""
    names = [name for name in swept if name != "seed"]
    members: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] not in ("waiting", "refused"):
            members.setdefault(json.dumps([row[name] for name in names]), []).append(row)
    settings = []
    for each in members.values():
        good = [row for row in each if is_result(row, score)]
        settings.append(
            Setting(
                options={name: each[0][name] for name in names},
                scores=tuple(row[score] for row in good),
                tests=tuple(row["test"] for row in good if row["test"] is not None),
                unfinished=len(each) - len(good),
            )
        )
    return sorted(settings, key=lambda s: (not s.scores, s.unfinished > 0, s.mean))


def summarise(
    rows: Sequence[Mapping[str, Any]], swept: Sequence[str], score: str, what: str
) -> dict[str, Any]:
    """results.json of a sweep, but for its times.

    Args:
      score: column of the table.
      what: what it is called.
    """
    settings = find_settings(rows, swept, score)
    counts = {status: sum(row["status"] == status for row in rows) for status in (*ENDS, "waiting")}
    found: dict[str, Any] = {"points": len(rows), **counts}
    if settings and settings[0].scores:
        best = settings[0]
        found["finding"] = f"{what} {with_interval(best)} at {describe(best.options)}"
        found["notes"] = list(find_doubts(settings))
        found["best"] = dict(best.options) | {what: best.mean}
        if best.tests:
            found["best"]["test perplexity"] = float(np.mean(best.tests))
    found["settings"] = [
        dict(setting.options)
        | {
            what: setting.mean if setting.scores else None,
            "± (95 %)": None if math.isnan(setting.half) else setting.half,
            "test": float(np.mean(setting.tests)) if setting.tests else None,
            "seeds": len(setting.scores),
            "diverged or failed": setting.unfinished,
        }
        for setting in settings
    ]
    for status, name in (("failed", "failures"), ("refused", "refusals")):
        those = [row for row in rows if row["status"] == status]
        if those:
            found[name] = [
                {"point": row["number"], **{n: row[n] for n in swept}, "error": row["error"]}
                for row in those
            ]
    return found


def find_doubts(settings: Sequence[Setting]) -> Iterator[str]:
    """What stands against calling the first of the settings, best first, the best."""
    best, *others = settings
    equal = [s for s in others if not s.unfinished and show(s.mean) == show(best.mean)]
    if equal and not best.unfinished:
        more = f" and {len(equal) - 1} more" if len(equal) > 1 else ""
        yield f"a tie: as good is {describe(equal[0].options)}{more}"
    if others and all(len(setting.scores) <= 1 for setting in settings):
        yield "one seed each: differences may be chance"


def at_edge(best: Mapping[str, Any], axes: Sequence[Axis], config: Any) -> list[str]:
    """The axes of numbers, of three values or a range, at whose end the best value lies.

    Not where no value lies beyond it, as none does below a dropout of 0.

    Args:
      best: option -> its best value.
      config: that is swept, whose fields say what they take.
    """
    fields = dict(each_field(config))
    found = []
    for axis in axes:
        kind, limits = fields[axis.name]
        if kind not in (int, float) or axis.name == "seed":
            continue
        value = best[axis.name]
        if axis.values:
            if len(axis.values) < 3 or min(axis.values) < value < max(axis.values):
                continue
        elif EDGE < place_in_range(value, axis) < 1 - EDGE:
            continue
        if value not in (limits.get("least"), limits.get("most"), math.inf):
            found.append(
                f"best at the edge of {axis.name} ({show(value)}): a wider range may have better"
            )
    return found


def place_in_range(value: float, axis: Axis) -> float:
    """From 0, at its low end, to 1."""
    scale = math.log if axis.logarithmic else float
    low, high = scale(axis.low), scale(axis.high)
    return (scale(value) - low) / (high - low)


def with_interval(setting: Setting) -> str:
    """Mean ± half an interval, and over how many seeds."""
    text = f"{setting.mean:.4g}"
    if not math.isnan(setting.half):
        digits = max(0, 3 - math.floor(math.log10(setting.mean))) if setting.mean > 0 else 3
        text += f" ±{setting.half:.{digits}f}"
    count = len(setting.scores)
    return f"{text} ({count} seeds)" if count > 1 else text


def describe(options: Mapping[str, Any]) -> str:
    """Options in words."""
    return ", ".join(f"{name} {show(value)}" for name, value in options.items()) or "these options"


def format_settings(found: Mapping[str, Any]) -> str:
    """The best settings as a table for the terminal."""
    rows = found["settings"][:SHOWN]
    if not rows:
        return ""
    columns = [
        name for name in rows[0] if any(row[name] not in (None, 0) for row in found["settings"])
    ]
    cells = [
        [show(row[name]) if row[name] is not None else "-" for name in columns] for row in rows
    ]
    widths = [max(len(name), *(len(row[k]) for row in cells)) for k, name in enumerate(columns)]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in [columns, *cells]
    ]
    more = len(found["settings"]) - len(rows)
    return "\n".join(lines + ([f"and {more} more settings"] if more > 0 else []))
