"""The search for rates on validation text: a grid for caches, a walk downhill for learning."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lm.dynamic_evaluation import Rates
from lm.neural_cache import Reading, mix

THETAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # those that --tune tries
WEIGHTS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4)
FACTOR = 2.0  # between neighbours on the lattice of rates that --tune walks on


class Mixture(NamedTuple):
    """How much of a cache is mixed in, and how sharply it looks."""

    weight: float
    theta: float


def with_start(grid: tuple[float, ...], start: float) -> tuple[float, ...]:
    """A grid with the value that tuning starts from in it."""
    return tuple(sorted({*grid, start}))


def best_mixture(reading: Reading, start: Mixture) -> Mixture:
    """The weight and theta of least nats; `reading` is of THETAS and `start`'s."""
    thetas = with_start(THETAS, start.theta)
    tried = {
        Mixture(weight, theta): mix(reading, weight, k).mean()
        for k, theta in enumerate(thetas)
        for weight in with_start(WEIGHTS, start.weight)
    }
    return min(tried, key=lambda mixture: tried[mixture])


def rates_at(start: Rates, place: tuple[int, int]) -> Rates:
    """The rates at a place of the lattice; decay is at most 1."""
    rate, decay = (FACTOR**k for k in place)
    return Rates(start.rate * rate, min(1.0, start.decay * decay), start.epsilon)


def descend(measure: Callable[[tuple[int, int]], float], most: int = 6) -> tuple[int, int]:
    """The place of a lattice from which no step along an axis leads lower, starting at (0, 0).

    Args:
      measure: what is to be low; nan counts as inf. Asked once for each place.
      most: steps from the start, along each axis.
    """
    seen: dict[tuple[int, int], float] = {}

    def height(place: tuple[int, int]) -> float:
        if max(map(abs, place)) > most:
            return np.inf
        if place not in seen:
            value = measure(place)
            seen[place] = value if np.isfinite(value) else np.inf
        return seen[place]

    place, moved = (0, 0), True
    while moved:
        moved = False
        for step in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            onward = (place[0] + step[0], place[1] + step[1])
            while height(onward) < height(place):
                place, moved = onward, True
                onward = (place[0] + step[0], place[1] + step[1])
    return place
