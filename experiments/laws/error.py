"""Distances between what was measured and what is known."""

from typing import Any

import numpy as np

Found = tuple[float, float]  # largest error, tolerance


def tolerance(dtype: str, float64: float, float32: float) -> float:
    """The one of the two that belongs to `dtype`."""
    return float64 if dtype == "float64" else float32


def float64(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def log_error(log: Any, expected: Any) -> float:
    """Largest difference of logs, nats; 0 between equal infinities."""
    log, expected = np.broadcast_arrays(float64(log), float64(expected))
    same = log == expected
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(same, 0, np.abs(log - expected))))


def worst(*errors: float) -> float:
    """The largest; NaN where one is, which Python's own `max` may lose."""
    return float(np.max(errors))


def absolute_error(got: Any, expected: Any) -> float:
    return float(np.max(np.abs(float64(got) - float64(expected))))


def relative_error(got: Any, expected: Any) -> float:
    """Largest difference over the largest magnitude expected."""
    return absolute_error(got, expected) / float(np.max(np.abs(float64(expected))))
