"""The points of a sweep: every combination of its axes, or a sample, and which train together."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.fit.config import with_options
from experiments.search.space import Axis

MOST_POINTS = 1_000_000
MOST_MISSES = 10_000  # draws in turn that bring no new setting, where nobody can count them


@dataclass(frozen=True)
class SweepPoint:
    """One training run of a sweep."""

    number: int  # from 0, in the order of the sweep
    options: Mapping[str, Any]  # what is swept, by name


@dataclass(frozen=True)
class Group:
    """Points that one program serves: they differ in traced numbers alone."""

    fixed: Mapping[str, Any]  # swept options that are part of the program; the rest are traced
    points: tuple[SweepPoint, ...]


def make_points(axes: Sequence[Axis], samples: int, draw_seed: int) -> list[SweepPoint]:
    """A grid, the last axis fastest; or `samples` draws, each with every seed that is swept.

    No two draws are the same setting: its mean would count a seed twice.

    Raises:
      ValueError: a range without a sample to draw, too many points, or fewer settings than
        are to be drawn.
    """
    ranges = [axis for axis in axes if not axis.values]
    if not samples:
        if ranges:
            raise ValueError(
                f"sweep gives {ranges[0].name} a range; wanted how many values of it, as "
                "log(0.1,30,8), or --samples=40 to draw from it"
            )
        check_number(int(np.prod([float(len(axis.values)) for axis in axes])))
        names = [axis.name for axis in axes]
        combined: Iterable[tuple[Any, ...]] = itertools.product(*(axis.values for axis in axes))
        return [
            SweepPoint(number, dict(zip(names, values, strict=True)))
            for number, values in enumerate(combined)
        ]
    # Seeds are what a mean is over: drawn with the rest, no setting would have two.
    seeds: tuple[Any, ...] = next((axis.values for axis in axes if axis.name == "seed"), ())
    drawn = [axis for axis in axes if axis.name != "seed" or not seeds]
    if not drawn:
        raise ValueError("samples is given, but seed alone is swept; wanted options to draw")
    check_number(samples * max(1, len(seeds)))
    settings = draw_settings(drawn, samples, np.random.default_rng(draw_seed))
    crossed = [
        setting | ({"seed": seed} if seeds else {})
        for setting in settings
        for seed in (seeds or (None,))
    ]
    return [SweepPoint(number, options) for number, options in enumerate(crossed)]


def draw_settings(
    axes: Sequence[Axis], samples: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Different settings; one that was drawn already is drawn anew.

    Raises:
      ValueError: there are not so many.
    """
    listed = all(axis.values for axis in axes)
    there_are = math.prod(len(axis.values) for axis in axes) if listed else math.inf
    settings: dict[tuple[Any, ...], None] = {}  # in their order
    misses = 0
    while len(settings) < samples <= there_are and (listed or misses < MOST_MISSES):
        before = len(settings)
        settings[tuple(axis.draw(rng) for axis in axes)] = None
        misses = 0 if len(settings) > before else misses + 1
    if len(settings) < samples:
        most = there_are if listed else len(settings)
        raise ValueError(
            f"samples is {samples}, but the values of the sweep make {most} settings; wanted at "
            f"most {most} samples, or more values"
        )
    names = [axis.name for axis in axes]
    return [dict(zip(names, setting, strict=True)) for setting in settings]


def check_number(count: int) -> None:
    if count > MOST_POINTS:
        raise ValueError(f"sweep has {count:,} points; wanted at most {MOST_POINTS:,}")


def refuse_impossible(
    config: Any, points: Sequence[SweepPoint], check: Callable[[Any], object]
) -> dict[int, str]:
    """Point -> why its options do not go together; empty where all do.

    Args:
      check: refuses more with a ValueError, given a point's configuration.

    Raises:
      ValueError: none of the points can be trained.
    """
    reasons: dict[int, str] = {}
    for point in points:
        try:
            check(with_options(config, point.options))
        except ValueError as error:
            reasons[point.number] = str(error)
    if len(reasons) == len(points):
        raise ValueError(f"no point of the sweep can be trained: {next(iter(reasons.values()))}")
    return reasons


def group_points(points: Iterable[SweepPoint], config: Any) -> list[Group]:
    """Points by program, in the order in which they first come.

    Args:
      config: of the sweep. What may be traced is asked of each point's own.
    """
    groups: dict[str, tuple[dict[str, Any], list[SweepPoint]]] = {}
    for point in points:
        own = with_options(config, point.options)
        fixed = {n: v for n, v in point.options.items() if not own.may_be_traced(n, v)}
        key = json.dumps(fixed, sort_keys=True)
        groups.setdefault(key, (fixed, []))[1].append(point)
    return [Group(fixed, tuple(members)) for fixed, members in groups.values()]
