"""Is a difference real? Paired tests over seeds, corrected for how many there are.

A variant and the baseline have the same seeds, read the same batches and so are compared pair by
pair: d_s = y_s(variant) - y_s(baseline), y the logarithm of what is measured (nats per token are
the log of a perplexity). exp of a mean of logs is a geometric mean, exp of a mean d a ratio.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

ALPHA = 0.05  # of the whole study, after Holm's correction
CONFIDENCE = 0.95  # of each interval, on its own


class Effect(NamedTuple):
    """A variant beside the baseline, in logs; NaN where there is no test."""

    mean: float
    low: float
    high: float
    p: float  # of a paired t test
    pairs: int  # seeds that neither lost
    untested: str = ""  # why there is no test


def paired_effect(variant: np.ndarray, baseline: np.ndarray) -> Effect:
    """The mean difference with its t interval. [S] each, not finite where a run diverged.

    Where more than half of either's runs diverged there is no test: the few that did not are a
    choice, and no sample.
    """
    both = np.isfinite(variant) & np.isfinite(baseline)
    differences = variant[both] - baseline[both]
    pairs = len(differences)
    if untested := why_untested(variant, baseline, pairs):
        return Effect(*(float("nan"),) * 4, pairs, untested)
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(pairs)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, pairs - 1) * error
    if error == 0:
        return Effect(mean, mean, mean, 0.0 if mean else 1.0, pairs)
    p = 2 * stats.t.sf(abs(mean) / error, pairs - 1)
    return Effect(float(mean), float(mean - half), float(mean + half), float(p), pairs)


def why_untested(variant: np.ndarray, baseline: np.ndarray, pairs: int) -> str:
    """What stands in the place of a verdict; empty where there can be one."""
    if np.isfinite(variant).mean() < 0.5:
        return "diverged"
    if np.isfinite(baseline).mean() < 0.5:
        return "no baseline"
    return "" if pairs > 1 else "too few pairs"


def interval(values: np.ndarray) -> tuple[float, float]:
    """(mean, half of its t interval) of what is finite; NaN where there is not enough."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else float("nan")), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * error
    return float(values.mean()), float(half)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p values as they are after m tests: below alpha are those that Holm's procedure rejects.

    The least times m, the next times m - 1, and so on, none below one before it. NaN, no test,
    stays NaN and is not counted.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    least = 0.0
    for rank, index in enumerate(tested[np.argsort(p_values[tested], kind="stable")]):
        least = max(least, min(1.0, (len(tested) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def verdict(effect: Effect, adjusted: float) -> str:
    """One word or two: what the seeds say."""
    if effect.untested:
        return effect.untested
    if adjusted >= ALPHA:
        return "no difference shown"
    return "worse" if effect.mean > 0 else "better"
