"""The figure of evaluation: perplexity through a text, and what adapting makes of it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments import figures, run_folder
from experiments.adapt import METHODS
from lm.evaluate import perplexity

NAMES = {
    "static": "static",
    "dynamic": "dynamic evaluation",
    "cache": "cache",
    "both": "dynamic evaluation with a cache",
}
COLOURS = {"static": "#000000", "dynamic": "#0072B2", "cache": "#E69F00", "both": "#009E73"}
POINTS = 1500  # of a curve in the figure


def plot(folder: Path, average: int = 2000) -> list[Path]:
    """Perplexity through each text, and its ratio to static; from the run's folder alone."""
    arrays = run_folder.read_arrays(folder / "evaluation.npz")
    texts = [str(name) for name in arrays["texts"]]
    figures.plt.rcParams.update(figures.STYLE)  # type: ignore[arg-type]
    figure, grid = figures.plt.subplots(
        2,
        len(texts),
        figsize=(4 + 4.5 * len(texts), 7.6),
        height_ratios=(3, 2),
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for index, name in enumerate(texts):
        nats = {
            method: arrays[f"{index}/{method}"].astype(np.float64)
            for method in METHODS
            if f"{index}/{method}" in arrays
        }
        upper, lower = grid[:, index]
        window = max(1, min(average, len(nats["static"]) // 4))
        total = {method: perplexity(each.mean()) for method, each in nats.items()}
        for method, each in nats.items():
            read, sliding = slide(each, window)
            _, more = slide(each - nats["static"], window)
            line = {"color": COLOURS[method], "linewidth": 1.4}
            label = f"{NAMES[method]}: {total[method]:.4g}"
            upper.plot(read / 1000, sliding / np.log(10), label=label, **line)
            lower.plot(read / 1000, more / np.log(10), **line)
        upper.set_title(f"{name}\n{finding(total)}", fontsize=11)
        figures.label_log10(upper)
        figures.label_log10(lower)
        upper.legend(title="perplexity of all tokens", alignment="left", fontsize=9)
        lower.set_xlabel(f"thousand tokens read (mean over the last {window:,})")
    grid[0, 0].set_ylabel("perplexity, exp(nats per token)")
    grid[1, 0].set_ylabel("perplexity / static perplexity")
    return figures.save(figure, folder / "figures", "evaluation")


def slide(nats: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens read, mean of the last `window` of them), at up to POINTS places. nats [N]."""
    total = np.concatenate([[0.0], np.cumsum(nats)])
    read = np.unique(np.linspace(window, len(nats), POINTS).astype(int))
    return read, (total[read] - total[read - window]) / window


def finding(total: Mapping[str, float]) -> str:
    """What a panel shows, in words."""
    best = min(total, key=lambda method: total[method])
    if best == "static":
        return f"adapting does not help, {total['static']:.4g} stays"
    less = 1 - total[best] / total["static"]
    return f"{NAMES[best]}: {total['static']:.4g} to {total[best]:.4g}, {less:.0%} less"
