"""The thresholds of the claims on tasks: scores by arm, one a seed, to a Verdict.

Fixed before the measurement. A score that is NaN passes nothing.
"""

import numpy as np

from experiments.claim.outcome import Verdict
from lm.gradients.statistics import seed_band
from lm.tasks import Task


def count(hits: np.ndarray) -> str:
    return f"{int(hits.sum())}/{len(hits)}"


def geometric(scores: np.ndarray) -> tuple[float, str]:
    """Geometric mean over seeds, and it with its 95 % interval in words."""
    with np.errstate(divide="ignore", invalid="ignore"):
        band = seed_band(np.log(scores))
    mean, low, high = (float(np.exp(value)) for value in band)
    return mean, f"{mean:.2g} [{low:.2g}, {high:.2g}]"


def judge_order(task: Task, errors: dict[str, np.ndarray]) -> Verdict:
    """At least 9 of 10 seeds with forget bias 1 are right, at most 2 of 10 with 0."""
    one, zero = (errors[label] < 0.01 for label in ("forget bias 1", "forget bias 0"))
    return Verdict(
        {"solved, forget bias 1": count(one), "solved, forget bias 0": count(zero)},
        bool(one.mean() >= 0.9 and zero.mean() <= 0.2),
        f"Forget bias 1 learns the order of two symbols in {count(one)} runs, 0 in {count(zero)}",
    )


def judge_identity(task: Task, best: dict[str, np.ndarray]) -> Verdict:
    """At least 9 of 10 identity RNNs get below 0.01, and no tanh RNN below 0.1."""
    relu, tanh = best["identity ReLU RNN"], best["tanh RNN"]
    return Verdict(
        {
            "below 0.01, identity ReLU": count(relu < 0.01),
            "highest best error, identity ReLU": float(relu.max()),
            "below 0.1, tanh": count(tanh < 0.1),
            "lowest best error, tanh": float(tanh.min()),
        },
        bool((relu < 0.01).mean() >= 0.9 and not (tanh < 0.1).any()),
        f"{task.length} steps: {count(relu < 0.01)} identity ReLU RNNs learn to add, "
        f"{count(tanh < 0.1)} tanh RNNs",
    )


def judge_clipping(task: Task, best: dict[str, np.ndarray]) -> Verdict:
    """At least 9 of 10 clipped runs get below 0.01, at most 1 of 10 unclipped below 0.1."""
    clipped, free = best["clip 1"], best["no clipping"]
    return Verdict(
        {
            "below 0.01, clipped": count(clipped < 0.01),
            "highest best error, clipped": float(clipped.max()),
            "below 0.1, not clipped": count(free < 0.1),
            "lowest best error, not clipped": float(free.min()),
        },
        bool((clipped < 0.01).mean() >= 0.9 and (free < 0.1).mean() <= 0.1),
        f"{count(clipped < 0.01)} clipped identity ReLU RNNs learn to add; without clipping "
        f"{count(free < 0.1)} get below 0.1",
    )


def judge_copy(task: Task, losses: dict[str, np.ndarray]) -> Verdict:
    """Every tanh RNN within 1 % of the baseline, every LSTM at most 0.93 of it."""
    tanh, lstm = (losses[label] / task.baseline for label in ("tanh RNN", "LSTM"))
    return Verdict(
        {
            "baseline, nats": task.baseline,
            "tanh / baseline": f"{tanh.min():.4f} to {tanh.max():.4f}",
            "LSTM / baseline": f"{lstm.min():.3f} to {lstm.max():.3f}",
        },
        bool((abs(tanh - 1) <= 0.01).all() and (lstm <= 0.93).all()),
        f"Copying: the tanh RNN stays at the baseline, {tanh.min():.3f} to {tanh.max():.3f} of it; "
        f"the LSTM gets to {lstm.min():.2f} to {lstm.max():.2f}",
    )


def judge_forget_bias(task: Task, errors: dict[str, np.ndarray]) -> Verdict:
    """Chrono ahead of forget bias 1 ahead of 0, by a factor of 2 or more each."""
    zero, one, chrono = (geometric(scores) for scores in errors.values())
    first, second = zero[0] / one[0], one[0] / chrono[0]
    means = dict(zip(errors, (zero[1], one[1], chrono[1]), strict=True))
    return Verdict(
        {**means, "bias 0 / bias 1": first, "bias 1 / chrono": second},
        bool(first >= 2 and second >= 2),
        f"Error of adding: forget bias 0 has {first:.1f} times that of 1, which has "
        f"{second:.1f} times that of chrono",
    )


def judge_gates(task: Task, errors: dict[str, np.ndarray]) -> Verdict:
    """Without input gate 3 times the error or more, without forget gate 2; coupled no more."""
    means = {label: geometric(scores) for label, scores in errors.items()}
    full = means["LSTM"][0]
    ratios = {label: mean / full for label, (mean, _) in means.items() if label != "LSTM"}
    words = ", ".join(f"{label} {ratio:.2g}" for label, ratio in ratios.items())
    return Verdict(
        {label: text for label, (_, text) in means.items()}
        | {f"{label} / LSTM": ratio for label, ratio in ratios.items()},
        bool(
            ratios["no input gate"] >= 3
            and ratios["no forget gate"] >= 2
            and ratios["coupled gates"] <= 1
        ),
        f"Error of adding, times the full LSTM's: {words}",
    )
