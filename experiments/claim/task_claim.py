"""A claim about how well cells learn a task: train every arm, score every seed, judge, draw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.claim.outcome import Outcome, Verdict, draw_level, label_figure, seeds_text
from experiments.task_training import BATCH, Hyper, Network, TaskRun, make_train_task, run_seeds
from lm.cells import CELLS
from lm.tasks import TASKS, Task

WINDOW = 25  # steps that a training loss is averaged over, 800 sequences
BEST = "best mean squared error"
ERROR = "lowest share of wrong answers"


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    label: str
    colour: str
    network: Network
    forget_bias: float = 0.0
    clip: float = 1.0


@dataclass(frozen=True)
class TaskClaim:
    """A claim about how well cells learn a task.

    Attributes:
      name: C2 to C7.
      statement: what is claimed, in a sentence.
      threshold: what passes, in words.
      seconds: that it takes on a CPU, for the progress bar.
      task: name in TASKS.
      length: T, or copy's delay, in steps.
      steps: of training.
      seeds: counted 0 upward.
      learning_rate: Adam's.
      arms: what is compared.
      score: a run -> the number that the claim is about, one a seed.
      scored: what that number is called.
      level: of the score, drawn as a line; None: the threshold is no level.
      judge: (task, scores by arm) -> Verdict.
    """

    name: str
    statement: str
    threshold: str
    seconds: float
    task: str
    length: int
    steps: int
    seeds: int
    learning_rate: float
    arms: tuple[Arm, ...]
    score: Callable[[TaskRun], np.ndarray]
    scored: str
    level: float | None
    judge: Callable[[Task, dict[str, np.ndarray]], Verdict]

    def measure(self, advance: Callable[[float], object]) -> Outcome:
        """Train every arm and judge. `advance` is told the share of the claim that is done."""
        task = TASKS[self.task](self.length)
        share = 1 / (len(self.arms) * self.seeds)
        compiled: dict[Network, Any] = {}
        runs = {}
        for arm in self.arms:
            if arm.network not in compiled:
                compiled[arm.network] = jax.jit(make_train_task(arm.network, task, self.steps))
            hyper = Hyper(*map(jnp.float32, (self.learning_rate, arm.clip, arm.forget_bias)))
            runs[arm.label] = run_seeds(
                compiled[arm.network], hyper, self.seeds, lambda: advance(share)
            )
        scores = {label: self.score(run) for label, run in runs.items()}
        verdict = self.judge(task, scores)
        arrays = {}
        for arm in self.arms:
            arrays[f"{arm.label}/losses"] = runs[arm.label].losses
            arrays[f"{arm.label}/score"] = scores[arm.label]
        rows = [
            [arm.label, seed, *numbers]
            for arm in self.arms
            for seed, numbers in enumerate(seed_rows(runs[arm.label], scores[arm.label]))
        ]
        columns = ["run", "seed", self.scored, "best loss", "loss after training", "steps to NaN"]
        return Outcome(*verdict, columns=columns, rows=rows, arrays=arrays)

    def settings(self) -> str:
        """What a figure must say of how it was made."""
        task = TASKS[self.task](self.length)
        clips = {arm.clip for arm in self.arms}
        gated = [arm for arm in self.arms if CELLS[arm.network.cell].forget_gate]
        biases = {arm.forget_bias for arm in gated if not arm.network.chrono}
        scales = {arm.network.input_std for arm in self.arms} - {None}
        return "".join(
            [
                f"{task.name}, T = {self.length}; H = {self.arms[0].network.hidden}",
                f", forget bias {biases.pop():g}" if len(biases) == 1 else "",
                f", ReLU RNN: weights of sd {scales.pop():g}" if scales else "",
                f"; Adam {self.learning_rate:g}, batch {BATCH}",
                f", clip {clips.pop():g}" if len(clips) == 1 else "",
                f", {self.steps} steps, {seeds_text(self.seeds)}",
            ]
        )

    def plot(
        self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path
    ) -> list[Path]:
        """The loss of every run against the step, and every run's score."""
        figure, (left, right) = figures.new_figure(2)
        task = TASKS[self.task](self.length)
        log_scores = task.loss == "squared"
        lowest = np.log10(task.baseline)
        for place, arm in enumerate(self.arms):
            lowest = min(lowest, draw_losses(left, arrays[f"{arm.label}/losses"], arm))
            draw_scores(right, arrays[f"{arm.label}/score"], arm.colour, place, log_scores)
        draw_level(left, np.log10(task.baseline), "remembering nothing", ":")
        left.set_ylim(lowest - 0.1, min(left.get_ylim()[1], np.log10(task.baseline) + 0.6))
        unit = "mean squared error" if task.loss == "squared" else "nats per answer"
        left.set(
            title="Training loss, on unseen sequences; thick: median",
            xlabel="step",
            ylabel=f"{unit}, mean of {WINDOW} steps",
        )
        figures.label_log10(left)
        left.legend(fontsize=9, loc="lower left")
        right.set(title="A dot a seed; the bar is their mean", ylabel=self.scored)
        right.set_xticks(range(len(self.arms)), [arm.label for arm in self.arms], fontsize=9)
        right.set_xlim(-0.6, len(self.arms) - 0.4)
        if self.level is not None:
            level = np.log10(self.level) if log_scores else self.level
            draw_level(right, level, f"threshold {self.level:.3g}", "--")
        if log_scores:
            figures.label_log10(right)
        label_figure(figure, record)
        return figures.save(figure, folder, record["figure"])


def seed_rows(run: TaskRun, score: np.ndarray) -> list[list[Any]]:
    """Of each seed: score, best loss, loss after training, first step with a NaN (None: none)."""
    gone = np.isnan(run.losses)
    return [
        [float(s), float(low), float(last), int(bad.argmax()) if bad.any() else None]
        for s, low, last, bad in zip(score, best_loss(run), run.loss, gone, strict=True)
    ]


def windowed(series: np.ndarray) -> np.ndarray:
    """Means over WINDOW steps in a row. [S, steps] -> [S, windows]; a shorter rest is left out."""
    width = min(WINDOW, series.shape[1])
    whole = series.shape[1] // width * width
    return series[:, :whole].astype(np.float64).reshape(len(series), -1, width).mean(axis=-1)


def best_loss(run: TaskRun) -> np.ndarray:
    """Lowest windowed loss of each seed [S]; inf where none is finite."""
    return best(run.losses)


def best_error(run: TaskRun) -> np.ndarray:
    """Lowest windowed share of wrong answers of each seed [S]."""
    return best(run.errors)


def best(series: np.ndarray) -> np.ndarray:
    means = windowed(series)
    return np.where(np.isfinite(means), means, np.inf).min(axis=1)


def final_loss(run: TaskRun) -> np.ndarray:
    """Loss after training [S]."""
    return np.asarray(run.loss, np.float64)


def draw_losses(axis: Any, losses: np.ndarray, arm: Arm) -> float:
    """log10 of every seed's windowed loss, thin, their median, thick; returns the lowest."""
    with np.errstate(invalid="ignore", over="ignore"):
        logs = np.log10(windowed(losses))
    steps = (np.arange(logs.shape[1]) + 1) * min(WINDOW, losses.shape[1])
    finite = np.ma.masked_invalid(logs)
    axis.plot(steps, finite.T, color=arm.colour, linewidth=0.7, alpha=0.3)
    axis.plot(steps, np.ma.median(finite, axis=0), color=arm.colour, linewidth=2.2, label=arm.label)
    return float(finite.min()) if finite.count() else np.inf


def draw_scores(axis: Any, scores: np.ndarray, colour: str, place: int, log: bool) -> None:
    """A dot a seed and the mean as a bar; a cross on the upper edge where a score is not finite."""
    across = place + np.linspace(-0.18, 0.18, len(scores)) * (len(scores) > 1)
    finite = np.isfinite(scores)
    with np.errstate(divide="ignore"):
        drawn = np.log10(scores[finite]) if log else scores[finite]
    axis.plot(across[finite], drawn, "o", color=colour, alpha=0.75, markersize=6)
    if finite.any():
        axis.plot([place - 0.28, place + 0.28], [drawn.mean()] * 2, color=colour, linewidth=1.6)
    if not finite.all():
        edge = axis.get_xaxis_transform()
        axis.plot(across[~finite], np.ones((~finite).sum()), "x", color=colour, transform=edge)
